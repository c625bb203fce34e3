//! Files and jobs that go: on request, by age, by count.

use cdc_export::store::retention::LaneCursor;
use serde_json::{Value, json};

use crate::catalog::{Catalog, ended};
use crate::harness::{Database, Start, ends, eventually, planted, serving_users, until};

#[tokio::test]
async fn a_file_is_removed_on_request_and_its_job_stays() {
    let (database, service) = serving_users(5).await;
    let (job, _) = service.export("full", "a").await;
    let path = format!("/exports/{}", job["jobId"].as_str().unwrap());
    for _ in 0..2 {
        assert_eq!(service.call("DELETE", &path, &[]).await.status(), 204);
        assert_eq!(service.files(), Vec::<String>::new());
        assert_eq!(service.call("GET", &format!("{path}/download"), &[]).await.status(), 410);
        assert_eq!(service.job(job["jobId"].as_str().unwrap()).await, job);
    }
    assert_eq!(service.call("DELETE", "/exports/x", &[]).await.status(), 404);

    // A file that somebody put in its place is theirs.
    let (job, _) = service.export("full", "a").await;
    std::fs::remove_file(service.path(&job)).unwrap();
    std::fs::write(service.path(&job), "theirs").unwrap();
    let path = format!("/exports/{}", job["jobId"].as_str().unwrap());
    assert_eq!(service.call("DELETE", &path, &[]).await.status(), 204);
    assert_eq!(std::fs::read_to_string(service.path(&job)).unwrap(), "theirs");

    let held = database.hold_exports().await;
    let id = service.submit("full", "a").await;
    let answer = service.call("DELETE", &format!("/exports/{id}"), &[]).await;
    assert_eq!(answer.status(), 409);
    assert_eq!(answer.json::<Value>().await.unwrap()["code"].as_str(), Some("still_open"));
    held.rollback().await.unwrap();
    service.ended(&id).await;
}

#[tokio::test]
async fn what_is_too_old_or_too_much_goes() {
    let (database, service) = serving_users(5).await;
    let mut names = Vec::new();
    for (consumer, jobs) in [("a", 5), ("b", 2)] {
        for _ in 0..jobs {
            let (job, _) = service.export("full", consumer).await;
            names.push(job["outputFilename"].as_str().unwrap().to_owned());
        }
    }
    let watermark = service.watermark("a").await;
    let files = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    assert_eq!(service.files(), files(&names));
    let statements = format!(
        "update cdc_export.exports set finished_at = finished_at - interval '2 days' where output_filename = '{}'",
        names[5]
    );
    database.run(&statements).await;

    // The newest three of each consumer, and none that is older than a day.
    let keeping = Start::on(&database).sharing_output(&service).with("RETAIN_FILES", "1d,3").service().await;
    let kept = files(&[&names[2..5], &names[6..7]].concat());
    until("files go", async || keeping.files() == kept).await;
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 7, "their jobs stay");
    keeping.stop().await;

    // A job takes its file with it.
    let keeping = Start::on(&database).sharing_output(&service).with("RETAIN_JOBS", "1").service().await;
    let left = "select count(*) from exports";
    until("jobs go", async || database.one::<i64>(left).await == 2).await;
    assert_eq!(keeping.files(), files(&[names[4].clone(), names[6].clone()]));
    assert_eq!(keeping.watermark("a").await, watermark);
    let (job, _) = keeping.export("delta", "a").await;
    assert_eq!((&job["rowsExported"], &job["continuity"]), (&0.into(), &Value::Null), "the position stays too");
}

/// A lane is forgotten from its beginning: what a loader may stand at has all that came after it.
#[tokio::test]
async fn nothing_is_forgotten_behind_a_job_that_is_kept() {
    let database = Database::with_users(5).await;
    // The first one's file is in a folder that has no service for a while.
    let elsewhere = Start::on(&database).service().await;
    let (first, _) = elsewhere.export("full", "a").await;
    elsewhere.stop().await;
    let service = Start::on(&database).service().await;
    let mut others = Vec::new();
    for consumer in ["a", "a", "a", "b", "b"] {
        others.push(service.export(if others.len() < 3 { "delta" } else { "full" }, consumer).await.0);
    }
    let keeping = Start::on(&database).sharing_output(&service).with("RETAIN_JOBS", "1").service().await;
    let left = "select count(*) from exports where consumer_id = 'b'";
    until("jobs go", async || database.one::<i64>(left).await == 1).await;
    assert_eq!(keeping.files().len(), 2);
    let id = first["jobId"].as_str().unwrap();
    let page = service.get(&format!("/exports?consumer=a&dataset=users&after={id}")).await;
    let ids = |jobs: &[Value]| jobs.iter().map(|job| job["jobId"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(page["items"].as_array().unwrap()), ids(&others[..3]));
    keeping.stop().await;
    // A day later nobody has had that folder: what it keeps holds nothing up, and who stands there is told so.
    let forget = format!(
        "delete from cdc_export.destinations where id = (select destination_id from cdc_export.exports where job = '{id}')"
    );
    database.run(&forget).await;
    let _keeping = Start::on(&database).sharing_output(&service).with("RETAIN_JOBS", "1").service().await;
    let left = "select count(*) from exports where consumer_id = 'a'";
    until("jobs go", async || database.one::<i64>(left).await == 2).await;
    service
        .refuses("GET", &format!("/exports?consumer=a&dataset=users&after={id}"), &[], 409, "database_restored")
        .await;
}

/// A lane needs these to go on: its own row, if it has published anything, and its last published job.
#[tokio::test]
async fn a_lane_goes_with_its_jobs_unless_it_has_published() {
    let (database, service) = serving_users(5).await;
    // It published two exports; the later ones were cancelled.
    service.export("full", "published").await;
    let (last, _) = service.export("delta", "published").await;
    for consumer in ["published", "cancelled"] {
        let held = database.hold_exports().await;
        for _ in 0..3 {
            let id = service.submit("delta", consumer).await;
            service.call("POST", &format!("/exports/{id}/cancel"), &[]).await;
            service.becomes(&id, "cancelled").await;
        }
        held.rollback().await.unwrap();
    }
    let (planted, _) = service.export("full", "planted").await;
    assert_eq!(planted["status"], "completed");
    service.call("POST", "/exports", &[]).await;
    until("the ad-hoc export ends", async || {
        database.one::<i64>("select count(*) from exports where consumer_id is null and published_at is not null").await
            == 1
    })
    .await;
    // A watermark is a consumer's place, also without a job; a folder that nobody has had for days is none.
    let statements = "insert into cdc_export.lanes (consumer_id, dataset, last_sequence) values ('set', 'users', 7), ('gone', 'users', 7);
         insert into watermarks (consumer_id, last_exported_at) values ('set', '2026-01-01');
         insert into cdc_export.destinations (id, seen_at) values (gen_random_uuid(), now() - interval '2 days');
         update cdc_export.exports set finished_at = finished_at - interval '2 days'";
    database.run(statements).await;
    let keeping = Start::on(&database).sharing_output(&service).with("RETAIN_JOBS", "1d");
    service.stop().await;

    let keeping = keeping.service().await;
    let lanes =
        "select string_agg(consumer_id, ' ' order by consumer_id) from cdc_export.lanes where consumer_id <> ''";
    let left = "planted published set";
    until("lanes go", async || database.one::<String>(lanes).await == left).await;
    let exports = "select array_agg(lane_sequence) from cdc_export.exports where consumer_id = 'published'";
    until("jobs go", async || database.one::<Vec<i64>>(exports).await == [2]).await;
    assert_eq!(keeping.job(last["jobId"].as_str().unwrap()).await["status"], "completed");
    assert_eq!(database.one::<i64>("select count(*) from exports where consumer_id = 'cancelled'").await, 0);
    assert_eq!(database.one::<i64>("select count(*) from cdc_export.destinations").await, 1, "the one that lives");
    assert_eq!(keeping.files(), Vec::<String>::new(), "a job that stays keeps no file");

    // A consumer that comes back begins anew, and one that has published goes on.
    let (job, _) = keeping.export("full", "cancelled").await;
    assert_eq!(
        database.one::<i64>("select lane_sequence from cdc_export.exports where consumer_id = 'cancelled'").await,
        1,
        "{job}"
    );
    keeping.export("delta", "published").await;
    assert_eq!(
        database.one::<i64>("select max(lane_sequence) from cdc_export.exports where consumer_id = 'published'").await,
        6
    );
}

/// Forgetting a lane and submitting to it at once: the job that was submitted keeps its lane.
#[tokio::test]
async fn a_lane_that_is_submitted_to_is_not_forgotten() {
    let changes = "
        insert into cdc_export.lanes (consumer_id, dataset, last_sequence) values ('a', 'users', 7), ('b', 'users', 7)";
    let database = Database::new_with(changes).await;
    let store = cdc_export::store::Store::new(database.pool.clone());
    // A submission holds these rows between its number and its commit.
    let next = "update cdc_export.lanes set last_sequence = last_sequence + 1 where consumer_id = 'a';";
    let submitting = format!("{next} {}", planted("select 'a', 'users', 8, 'delta', 'pending', now()"));
    let submitting = database.open(&submitting).await;
    assert_eq!(store.forget_lanes(&LaneCursor::default()).await.unwrap().found, 1, "b's alone, without waiting");
    submitting.commit().await.unwrap();
    assert_eq!(store.forget_lanes(&LaneCursor::default()).await.unwrap().found, 0);
    let lanes = "select string_agg(consumer_id || last_sequence, ' ') from cdc_export.lanes";
    assert_eq!(database.one::<String>(lanes).await, "a8");
}

/// One consumer of three datasets: the exports of one take no place of another's.
#[tokio::test]
async fn each_dataset_of_a_consumer_keeps_its_own_files_and_jobs() {
    let database = Database::with_users(5).await;
    let names = ["one", "two", "three"];
    let of = |name: &&str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"users\"\nkey = [\"id\"]\n");
    let catalog = Catalog::of(&names.iter().map(of).collect::<String>());
    let service = catalog.serving(&database, &["one"]).await;
    let mut kept = Vec::new();
    for name in names {
        for consumer in [Some("a"), None] {
            for n in 0..3 {
                let path = if consumer.is_some() { "/exports/full" } else { "/exports" };
                let job = ended(&service, path, consumer, json!({ "dataset": name })).await;
                if n == 2 {
                    kept.push(job["outputFilename"].as_str().unwrap().to_owned());
                }
            }
        }
    }
    kept.sort();
    let keeping = catalog.start(&database).sharing_output(&service).with("RETAIN_FILES", 1).service().await;
    until("files go", async || keeping.files() == kept).await;
    keeping.stop().await;
    let _keeping = catalog.start(&database).sharing_output(&service).with("RETAIN_JOBS", 1).service().await;
    let lanes =
        "select array_agg(jobs) from (select count(*) as jobs from exports group by consumer_id, dataset) lanes";
    eventually("jobs go", async || (database.one::<Vec<i64>>(lanes).await == [1; 6]).then_some(())).await;
}

/// One round takes all that is past the retention, however much that is.
#[tokio::test]
async fn a_year_of_jobs_goes_at_once() {
    let rows = "select 'c' || n % 10, 'users', n, 'delta', 'failed', now() - interval '1 year' from generate_series(1, 9000) n";
    let lanes = "insert into cdc_export.lanes (consumer_id, dataset, last_sequence)
                 select distinct consumer_id, dataset, 9000 from exports";
    let database = Database::new_with(&(planted(rows) + lanes)).await;
    let service = Start::on(&database).with("RETAIN_JOBS", "30d").service().await;
    let round = eventually("a round ends", async || service.events("jobs_forgotten").pop()).await;
    assert_eq!(round["exports"], 9000);
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 0);
}

/// From the oldest on, and none from the newest full export on. What is left is whole for whoever checks it.
#[tokio::test]
async fn manifests_go_before_the_newest_full_export() {
    let database = Database::with_users(5).await;
    let start = || Start::on(&database).with("MANIFESTS", "on");
    let service = start().service().await;
    let mut jobs = Vec::new();
    for export_type in ["full", "delta", "delta", "full", "delta", "delta"] {
        jobs.push(service.export(export_type, "a").await.0);
    }
    service.export("full", "b").await;
    let manifests = || service.files().into_iter().filter(|name| name.ends_with(".manifest.json")).collect::<Vec<_>>();
    let of = |from: usize| {
        let names =
            jobs[from..].iter().map(|job| job["outputFilename"].as_str().unwrap().replace(".csv", ".manifest.json"));
        let mut names: Vec<String> = names.collect();
        names.push(manifests().into_iter().find(|name| name.contains("full_b")).unwrap());
        names.sort();
        names
    };
    let whole = async || {
        let folder = service.output().to_str().unwrap();
        ends(Start::plain().arguments(&["verify", folder]).output().await, 0, "");
    };
    let keeping = |jobs| start().sharing_output(&service).with("RETAIN_FILES", 3).with("RETAIN_JOBS", jobs);
    let numbers = async || {
        database.one::<Vec<i64>>("select array_agg(number order by number) from exports where consumer_id = 'a'").await
    };
    // The files of the first three are gone then.
    let keeper = keeping(5).service().await;
    until("the oldest manifest goes", async || manifests() == of(1)).await;
    whole().await;
    until("its job goes", async || numbers().await == [2, 3, 4, 5, 6]).await;
    keeper.stop().await;
    let keeper = keeping(3).service().await;
    until("those before the full export go", async || manifests() == of(3)).await;
    whole().await;
    until("their jobs go", async || numbers().await == [4, 5, 6]).await;
    keeper.stop().await;
    // With the newest full export stay the manifests of all that follow it, and their jobs.
    let keeper = keeping(1).service().await;
    until("files go", async || !service.path(&jobs[4]).exists()).await;
    let (witness, _) = keeper.export("full", "c").await;
    assert_eq!((witness["number"].as_u64(), numbers().await), (Some(1), vec![4, 5, 6]));
    assert!(of(3).iter().all(|name| manifests().contains(name)), "{:?}", manifests());
    let (next, _) = keeper.export("delta", "a").await;
    assert_eq!(next["number"], 7);
}

/// A file in the midst of the others was removed on request: its manifest links the exports around it.
#[tokio::test]
async fn no_manifest_goes_after_one_that_stays() {
    let database = Database::with_users(5).await;
    let start = || Start::on(&database).with("MANIFESTS", "on");
    let service = start().service().await;
    let mut jobs = Vec::new();
    for export_type in ["full", "delta", "delta", "delta", "full"] {
        jobs.push(service.export(export_type, "a").await.0);
    }
    let path = |job: &Value, call: &str| format!("/exports/{}{call}", job["jobId"].as_str().unwrap());
    // The later exports are spared, since they are not acknowledged.
    assert_eq!(service.call("POST", &path(&jobs[0], "/ack"), &[]).await.status(), 200);
    let (witness, _) = service.export("full", "b").await;
    service.export("full", "b").await;
    assert_eq!(service.call("DELETE", &path(&jobs[2], ""), &[]).await.status(), 204);
    let _keeping = start().sharing_output(&service).with("RETAIN_JOBS", 1).service().await;
    let manifest = |job: &Value| service.path(job).with_extension("manifest.json");
    until("another lane's goes", async || !manifest(&witness).exists()).await;
    let stay: Vec<_> = jobs.iter().map(|job| manifest(job).exists()).collect();
    assert_eq!(stay, [false, true, true, true, true], "{:?}", service.files());
    let folder = service.output().to_str().unwrap();
    ends(Start::plain().arguments(&["verify", folder]).output().await, 0, "");
}
