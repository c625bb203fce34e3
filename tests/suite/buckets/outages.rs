//! Stores that stand still, are gone or refuse, and what is lost or changed on the way to them.

use std::time::Duration;

use axum::http::request::Parts;
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::between::{Between, Fate, is_any, is_completion, is_deletion, is_marker, is_part};
use super::{Bucket, Cloud, add_wide_users, buckets, downloaded, export, is_key_of};
use crate::harness::{Database, Service, Start, eventually, until};

const LEASE: Duration = Duration::from_secs(8);

/// When a store begins to fail: while rows are read, and after the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Writing,
    Publishing,
}

impl When {
    fn begins(self) -> fn(&Parts) -> bool {
        match self {
            When::Writing => is_part,
            When::Publishing => is_completion,
        }
    }
}

/// A service on a bucket of its own, and what stands between the two.
struct Trial {
    bucket: Bucket,
    database: Database,
    between: Between,
    service: Service,
}

impl Trial {
    /// Makes a trial with users that fill two parts.
    async fn on(bucket: &Bucket, with: impl FnOnce(Start) -> Start) -> Trial {
        let bucket = Bucket::new(bucket.cloud, bucket.endpoint.clone()).await;
        let database = Database::new().await;
        add_wide_users(&database, 20_000).await;
        let between = Between::to(&bucket.endpoint).await;
        let start = bucket.at(&between.address).start(&database).with("LEASE_SECONDS", LEASE.as_secs());
        let service = with(start.with("FAILPOINTS", "sink.stall=time:1000")).service().await;
        Trial { bucket, database, between, service }
    }

    /// Begins an export that meets this.
    async fn meets(&self, when: When, fate: Fate) -> String {
        self.between.from(when.begins(), fate);
        let id = self.service.submit("full", "a").await;
        self.between.meets_one().await;
        id
    }

    /// Waits until an attempt has failed so, or, after the commit, the publication.
    async fn fails(&self, id: &str, when: When, code: &str) {
        match when {
            When::Writing => {
                eventually(code, async || (self.service.job(id).await["error"]["code"] == code).then_some(())).await;
            }
            When::Publishing => {
                self.service.says("publish_failed", id).await;
                assert_eq!(self.service.job(id).await["status"], "processing");
            }
        }
    }

    /// The API answers all the same, and readiness tells of the store.
    async fn is_up_and_not_ready(&self) {
        for path in ["/health/live", "/exports", "/metrics"] {
            assert_eq!(self.service.ask("GET", path, &[]).await.status(), 200, "{path}");
        }
        let answer = self.service.call("GET", "/health/ready", &[]).await;
        assert_eq!(answer.status(), 503);
        let checks: Value = answer.json::<Value>().await.unwrap()["checks"].clone();
        assert!(checks["output"] != "ok" && checks["postgres"] == "ok", "{checks}");
    }

    /// Requires that nothing shows a fault: the job's file is there once, no other, and the next export goes on from
    /// there. The next start sweeps the leftovers of an attempt that couldn't reach the store.
    async fn ends_well(self, id: &str) -> Value {
        let Trial { bucket, database, mut service, .. } = self;
        let job = service.completes(id).await;
        // The log line follows the transaction, which clients see at once.
        service.says("export_completed", id).await;
        assert_eq!(service.events("export_completed").len(), 1, "{}", service.log());
        service.end().await;
        let service = bucket.start(&database).service().await;
        bucket.holds_only(&service, &job).await;
        assert_eq!(downloaded(&service, &job).await.ids(), (1..=20_000).collect::<Vec<_>>());
        assert_eq!(service.watermark("a").await.as_deref(), job["watermarkTo"].as_str());
        database.run("update users set name = 'new', updated_at = now() where id = 7").await;
        assert_eq!(downloaded(&service, &export(&service, "delta", "a").await).await.ids(), [7]);
        service.stop().await;
        job
    }
}

/// The same trial of all emulators at once, since most of it is waiting; while rows are read, then after the commit.
async fn everywhere<F: Future<Output = ()>>(trial: impl Fn(Bucket, When) -> F) {
    for when in [When::Writing, When::Publishing] {
        join_all(buckets().await.into_iter().map(|bucket| trial(bucket, when))).await;
    }
}

#[tokio::test]
async fn a_store_that_stands_still_delays_exports_and_costs_none() {
    everywhere(async |bucket, when| {
        let trial = Trial::on(&bucket, |start| start).await;
        let id = trial.meets(when, Fate::Held).await;
        let three_leases = tokio::time::sleep(3 * LEASE);
        trial.is_up_and_not_ready().await;
        trial.fails(&id, when, "storage_unavailable").await;
        three_leases.await;
        trial.is_up_and_not_ready().await;
        trial.between.heal();
        let job = trial.ends_well(&id).await;
        assert!(when == When::Writing || job["attempt"] == 1, "{job}");
    })
    .await;
}

#[tokio::test]
async fn a_store_that_is_gone_or_too_busy_for_a_while_costs_no_export() {
    for (fate, is_gone) in [(Fate::Held, true), (Fate::Refused(503, "SlowDown"), false)] {
        everywhere(async |bucket, when| {
            let trial = Trial::on(&bucket, |start| start).await;
            let id = trial.meets(when, fate).await;
            if is_gone {
                trial.between.close().await;
            }
            trial.is_up_and_not_ready().await;
            trial.fails(&id, when, "storage_unavailable").await;
            trial.between.heal();
            let job = trial.ends_well(&id).await;
            assert!(when == When::Writing || job["attempt"] == 1, "{job}");
        })
        .await;
    }
}

#[tokio::test]
async fn rights_that_are_taken_fail_an_export_and_no_committed_one() {
    everywhere(async |bucket, when| {
        let trial = Trial::on(&bucket, |start| start).await;
        let mut id = trial.meets(when, Fate::Refused(403, "AccessDenied")).await;
        trial.is_up_and_not_ready().await;
        trial.fails(&id, when, "storage_readonly").await;
        trial.between.heal();
        if when == When::Writing {
            // An operator mends the store, which nothing reports to the service, and retries.
            assert_eq!(trial.service.ended(&id).await["status"], "failed");
            let answer = trial.service.call("POST", &format!("/exports/{id}/retry"), &[]).await;
            assert_eq!(answer.status(), 202);
            id = answer.json::<Value>().await.unwrap()["jobId"].as_str().unwrap().to_owned();
        }
        assert_eq!(trial.ends_well(&id).await["attempt"], 1);
    })
    .await;
}

#[tokio::test]
async fn answers_to_a_completion_that_are_all_lost_publish_once() {
    for bucket in buckets().await {
        let trial = Trial::on(&bucket, |start| start).await;
        // Each time: only another question tells.
        trial.between.rule(|request| if is_completion(request) { Fate::AnswerLost } else { Fate::Passed });
        let id = trial.service.submit("full", "a").await;
        trial.between.meets_one().await;
        let job = trial.service.ended(&id).await;
        let key = trial.bucket.keys().await.into_iter().find(|key| is_key_of(key, &job)).unwrap();
        let head = trial.bucket.call("HEAD", &key, "").await;
        let recorded: String = trial.database.one("select place->'object'->>'etag' from cdc_export.files").await;
        assert_eq!(head.headers()["etag"].to_str().unwrap(), recorded);
        assert_eq!(trial.service.events("publish_failed"), [] as [Value; 0]);
        assert_eq!(trial.ends_well(&id).await["attempt"], 1);
    }
}

#[tokio::test]
async fn an_answer_to_a_deletion_that_is_lost_stops_no_publication() {
    for bucket in buckets().await {
        let trial = Trial::on(&bucket, |start| start).await;
        let mut deletions = 0;
        // Asked again, the store says that there is no such object.
        trial.between.rule(move |request| {
            deletions += usize::from(is_deletion(request));
            if is_deletion(request) && deletions == 1 { Fate::AnswerLost } else { Fate::Passed }
        });
        let id = trial.service.submit("full", "a").await;
        trial.between.meets_one().await;
        assert_eq!(trial.ends_well(&id).await["attempt"], 1);
    }
}

#[tokio::test]
async fn a_part_that_changed_on_the_way_is_refused_and_sent_again() {
    // The other clouds' clients send no checksum of a part: there TLS alone sees to it.
    for bucket in buckets().await.into_iter().filter(|bucket| bucket.cloud == Cloud::S3) {
        let trial = Trial::on(&bucket, |start| {
            start.with("AWS_CHECKSUM_ALGORITHM", "SHA256").with("FAILPOINTS", "sink.stall=time:300000")
        });
        let trial = trial.await;
        let mut parts = 0;
        trial.between.rule(move |request| {
            parts += usize::from(is_part(request));
            if is_part(request) && parts == 2 { Fate::BitFlipped } else { Fate::Passed }
        });
        let id = trial.service.submit("full", "a").await;
        trial.between.meets_one().await;
        assert_eq!(trial.ends_well(&id).await["attempt"], 1);
    }
}

#[tokio::test]
async fn a_part_that_always_changes_on_the_way_makes_no_file() {
    for bucket in buckets().await.into_iter().filter(|bucket| bucket.cloud == Cloud::S3) {
        let trial = Trial::on(&bucket, |start| start.with("AWS_CHECKSUM_ALGORITHM", "SHA256").with("MAX_ATTEMPTS", 1));
        let trial = trial.await;
        trial.between.rule(|request| if is_part(request) { Fate::BitFlipped } else { Fate::Passed });
        let id = trial.service.submit("full", "a").await;
        let job = trial.service.ended(&id).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("storage_unavailable")), "{job}");
        let (bucket, service) = (&trial.bucket, &trial.service);
        until("nothing is left", async || bucket.keys().await.is_empty() && bucket.uploads().await.is_empty()).await;
        assert_eq!(service.watermark("a").await, None);
        trial.service.stop().await;
    }
}

#[tokio::test]
async fn a_put_that_took_long_leaves_no_older_marker() {
    for bucket in buckets().await {
        let Trial { bucket, database, between, service } = Trial::on(&bucket, |start| start).await;
        between.rule(|request| if is_marker(request) { Fate::Held } else { Fate::Passed });
        let first = service.submit("full", "a").await;
        between.meets_one().await;
        service.signal(Signal::SIGSTOP);
        let other = bucket.start(&database).service().await;
        assert_eq!(other.ended(&first).await["status"], "completed");
        let last = export(&other, "delta", "a").await;
        between.heal();
        service.signal(Signal::SIGCONT);
        assert_eq!(service.says("marker_left", &first).await["marked"], last["jobId"]);
        let keys = bucket.all_keys().await;
        let key = keys.iter().find(|key| key.contains("/.lane-")).unwrap();
        assert_eq!(bucket.call("GET", key, "").await.json::<Value>().await.unwrap()["job"], last["jobId"]);
        export(&other, "delta", "a").await;
        service.stop().await;
        other.stop().await;
    }
}

#[tokio::test]
async fn a_service_ends_soon_though_its_store_stands_still() {
    let ends = async |mut trial: Trial, id: Option<String>| {
        trial.service.signal(Signal::SIGTERM);
        assert_eq!(trial.service.exit().await, Some(0));
        assert_eq!(trial.service.events("workers_abandoned"), [] as [Value; 0]);
        trial.between.heal();
        let Trial { bucket, database, .. } = trial;
        let heir = bucket.start(&database).service().await;
        if let Some(id) = id {
            let job = heir.ended(&id).await;
            assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(1)), "{job}");
            bucket.holds_only(&heir, &job).await;
        }
        heir.stop().await;
    };
    everywhere(async |bucket, when| {
        let trial = Trial::on(&bucket, |start| start).await;
        let id = trial.meets(when, Fate::Held).await;
        ends(trial, Some(id)).await;
    })
    .await;
    // A worker without a job is not waited for, either.
    for bucket in buckets().await {
        let trial = Trial::on(&bucket, |start| start).await;
        trial.between.from(is_any, Fate::Held);
        trial.is_up_and_not_ready().await;
        ends(trial, None).await;
    }
}
