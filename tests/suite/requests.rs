//! Asking for an export: once by its key, again after a failure, and not more than a lane may hold.

use std::collections::HashSet;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::catalog::post;
use crate::harness::{Database, Service, Start, refusal, serving_users};

/// An export's answer; of many at once some have to come again, since the API has few connections.
async fn ask(service: &Service, path: &str, consumer: &str, key: &str) -> reqwest::Response {
    service.ask("POST", path, &[("X-Consumer-ID", consumer), ("Idempotency-Key", key)]).await
}

#[tokio::test]
async fn fifty_posts_with_one_key_are_one_job() {
    let database = Database::with_users(5).await;
    let services = [Start::on(&database).service().await, Start::on(&database).service().await];
    let posts = (0..50).map(|n| ask(&services[n % 2], "/exports/full", "one", "key-1"));
    let answers = join_all(posts).await;
    let mut bodies = HashSet::new();
    for answer in answers {
        assert_eq!(answer.status(), 202);
        bodies.insert(answer.text().await.unwrap());
    }
    assert_eq!(bodies.len(), 1, "each gets the first answer: {bodies:?}");
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 1);

    // The key names the job as long as the job is kept, even after its end.
    let id = serde_json::from_str::<Value>(bodies.iter().next().unwrap()).unwrap()["jobId"].clone();
    services[0].ended(id.as_str().unwrap()).await;
    assert_eq!(ask(&services[0], "/exports/full", "one", "key-1").await.json::<Value>().await.unwrap()["jobId"], id);
    // A key is its consumer's own.
    assert_ne!(ask(&services[0], "/exports/full", "two", "key-1").await.json::<Value>().await.unwrap()["jobId"], id);
}

#[tokio::test]
async fn a_key_names_one_request_only() {
    let (database, service) = serving_users(5).await;
    assert_eq!(ask(&service, "/exports/full", "one", "k").await.status(), 202);
    let other = ask(&service, "/exports/delta", "one", "k").await;
    assert_eq!(refusal(other).await, (422, "idempotency_key_reused".to_owned()));
    // The same request arrives at another path.
    assert_eq!(ask(&service, "/exports", "one", "k").await.status(), 202);
    assert_eq!(ask(&service, "/export/one", "one", "incremental").await.status(), 202);
    assert_eq!(ask(&service, "/exports/incremental", "one", "incremental").await.status(), 202);

    // Requests without a consumer share their keys.
    let ad_hoc = async |key: &str| service.call("POST", "/exports", &[("Idempotency-Key", key)]).await;
    let first: Value = ad_hoc("k").await.json().await.unwrap();
    let again: Value = ad_hoc("k").await.json().await.unwrap();
    assert_eq!(first, again);
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 3);
}

#[tokio::test]
async fn a_key_has_1_to_255_visible_characters() {
    let service = Start::on(&Database::new().await).service().await;
    assert_eq!(ask(&service, "/exports/full", "one", &"x".repeat(255)).await.status(), 202);
    let longer = "x".repeat(256);
    for key in ["", "a b", "k\u{e4}y", &longer] {
        let answer = ask(&service, "/exports/full", "one", key).await;
        assert_eq!(refusal(answer).await, (400, "idempotency_key_invalid".to_owned()), "{key:?}");
    }
    let twice = [("X-Consumer-ID", "one"), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")];
    service.refuses("POST", "/exports/full", &twice, 400, "idempotency_key_invalid").await;
}

#[tokio::test]
async fn a_lane_takes_twenty_open_jobs() {
    let (database, service) = serving_users(5).await;
    let held = database.hold_exports().await;
    let posts = (0..40).map(|n| {
        let key = format!("key-{n}");
        let service = &service;
        async move { (key.clone(), ask(service, "/exports/delta", "eager", &key).await) }
    });
    let mut taken = Vec::new();
    for (key, answer) in join_all(posts).await {
        if answer.status() == 202 {
            taken.push(key);
        } else {
            assert_eq!(answer.headers()["Retry-After"], "2");
            assert_eq!(refusal(answer).await, (429, "too_many_open_jobs".to_owned()));
        }
    }
    assert_eq!(taken.len(), 20);
    // A request that is a job already is none more; and the lanes of others are their own.
    assert_eq!(ask(&service, "/exports/delta", "eager", &taken[0]).await.status(), 202);
    let other = service.submit("delta", "modest").await;
    let answers = join_all((0..25).map(|_| service.ask("POST", "/exports", &[]))).await;
    let accepted = answers.iter().filter(|answer| answer.status() == 202).count();
    assert_eq!(accepted, 20, "exports without a consumer have a bound as well");

    held.rollback().await.unwrap();
    service.ended(&other).await;
    let all: Vec<String> = database.one("select array_agg(job::text) from exports").await;
    for id in &all {
        assert_eq!(service.ended(id).await["status"], "completed");
    }
    assert_eq!(ask(&service, "/exports/delta", "eager", "key-later").await.status(), 202);
}

/// A folder with a catalog of several datasets of the same table.
fn catalog(names: &[&str]) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("datasets.toml");
    let blocks = names.iter().map(|name| {
        format!("[[dataset]]\nname = \"{name}\"\ntable = \"users\"\nupdated_at = \"updated_at\"\nexclude = [\"operation_type\"]\n")
    });
    std::fs::write(&file, blocks.collect::<String>()).unwrap();
    (folder, file.to_str().unwrap().to_owned())
}

/// One consumer may ask for a whole database at once: its lanes don't take each other's places.
#[tokio::test]
async fn each_dataset_of_a_consumer_takes_twenty_open_jobs() {
    let database = Database::with_users(5).await;
    let names = ["one", "two", "three", "four"];
    let (_folder, file) = catalog(&names);
    let services = [
        Start::on(&database).with("DATASETS", &file).service().await,
        Start::on(&database).with("DATASETS", &file).service().await,
    ];
    let held = database.hold_exports().await;
    let ask = async |n: usize, consumer: Option<&str>| {
        let service = &services[n % 2];
        post(service, "/exports", consumer, &serde_json::json!({ "dataset": names[n % 4] })).await
    };
    for consumer in [Some("eager"), None] {
        let answers: Vec<_> = stream::iter(0..100).map(|n| ask(n, consumer)).buffered(8).collect().await;
        for (n, answer) in answers.into_iter().enumerate() {
            if n < 60 {
                assert_eq!(answer.status(), 202, "{n} of {consumer:?}");
            } else if answer.status() != 202 {
                assert_eq!(refusal(answer).await, (429, "too_many_open_jobs".to_owned()));
            }
        }
    }
    let lanes = "select array_agg(open order by dataset, consumer_id) from (
                   select consumer_id, dataset, count(*) as open from exports group by 1, 2) lanes";
    assert_eq!(database.one::<Vec<i64>>(lanes).await, [20; 8]);
    held.rollback().await.unwrap();
}

#[tokio::test]
async fn the_queue_has_an_end() {
    let database = Database::with_users(5).await;
    let service = Start::on(&database).with("MAX_OPEN_JOBS", 25).service().await;
    let held = database.hold_exports().await;
    let post = async |n: usize| ask(&service, "/exports/delta", &format!("c{n}"), "key").await;
    let answers: Vec<_> = stream::iter(0..60).map(post).buffered(4).collect().await;
    let taken: Vec<usize> = (0..60).filter(|n| answers[*n].status() == 202).collect();
    assert_eq!(taken.len(), 25);
    for answer in answers.into_iter().filter(|answer| answer.status() != 202) {
        assert_eq!(answer.headers()["Retry-After"], "2");
        assert_eq!(refusal(answer).await, (429, "too_many_open_jobs".to_owned()));
    }
    assert_eq!(post(taken[0]).await.status(), 202, "it is a job already");
    held.rollback().await.unwrap();
    crate::harness::until("there is room again", async || post(100).await.status() == 202).await;
}

#[tokio::test]
async fn a_failed_or_cancelled_job_is_tried_again_as_a_new_one() {
    let (database, service) = serving_users(5).await;
    let retry = async |id: &str, key: &str| {
        service.call("POST", &format!("/exports/{id}/retry"), &[("Idempotency-Key", key)]).await
    };
    let (done, _) = service.export("full", "one").await;
    assert_eq!(refusal(retry(done["jobId"].as_str().unwrap(), "a").await).await, (409, "not_failed".to_owned()));

    let held = database.hold_exports().await;
    let cancelled = service.submit("delta", "one").await;
    assert_eq!(refusal(retry(&cancelled, "b").await).await, (409, "not_failed".to_owned()));
    service.call("POST", &format!("/exports/{cancelled}/cancel"), &[]).await;
    service.becomes(&cancelled, "cancelled").await;
    held.rollback().await.unwrap();
    let (first, again) = (retry(&cancelled, "c").await, retry(&cancelled, "c").await);
    assert_eq!(first.status(), 202);
    let location = first.headers()["Location"].to_str().unwrap().to_owned();
    let first: Value = first.json().await.unwrap();
    assert_eq!((first["status"].as_str(), first["exportType"].as_str()), (Some("pending"), Some("delta")));
    assert_eq!(first, again.json::<Value>().await.unwrap(), "once by its key");
    let id = first["jobId"].as_str().unwrap();
    assert_eq!(location, format!("/exports/{id}"));
    let job = service.ended(id).await;
    assert_eq!(job["status"], "completed");
    assert_eq!(job["retryOf"], json!(cancelled));
    assert_eq!(job["consumerId"], "one");
    assert_eq!(done["retryOf"], Value::Null);

    assert_eq!(refusal(retry("00000000-0000-0000-0000-000000000000", "d").await).await, (404, "not_found".to_owned()));
}

#[tokio::test]
async fn a_member_that_another_call_takes_is_refused_with_that_call() {
    let (_, service) = serving_users(0).await;
    let refused = async |path: &str, consumer: Option<&str>, body: &str| {
        let request =
            service.client.post(format!("{}{path}", service.address)).header("Content-Type", "application/json");
        let request = consumer.into_iter().fold(request, |request, id| request.header("X-Consumer-ID", id));
        let problem: Value = request.body(body.to_owned()).send().await.unwrap().json().await.unwrap();
        assert_eq!((&problem["status"], &problem["code"]), (&json!(400), &json!("member_unknown")), "{problem}");
        problem["detail"].as_str().unwrap().to_owned()
    };
    for body in [r#"{"columns":["id"]}"#, r#"{"limit":1}"#, r#"{"filter":[]}"#] {
        for path in ["/exports", "/exports/full", "/exports/delta", "/export/c"] {
            let why = refused(path, Some("c"), body).await;
            assert!(why.contains("ad-hoc") && why.contains("without X-Consumer-ID"), "{path} {body}: {why}");
        }
    }
    assert!(refused("/exports", None, r#"{"after":null}"#).await.contains("send X-Consumer-ID"));
}

/// While Postgres reads the condition, the check has a lock on the table, which the writer wants too.
#[tokio::test]
async fn the_check_of_a_filter_waits_for_no_index_that_is_rebuilt() {
    let (database, service) = serving_users(0).await;
    let mut writer = database.open("reindex index users_pkey; set local deadlock_timeout = '100ms'").await;
    let body = json!({ "exportType": "full", "filter": [{ "column": "id", "op": "gt", "value": 1 }] });
    let lock = sqlx::raw_sql("select pg_sleep(0.5); lock table users").execute(&mut *writer);
    let (answer, locked) = tokio::join!(post(&service, "/exports", None, &body), lock);
    locked.expect("no deadlock");
    assert_eq!(answer.status(), 503, "{}", answer.text().await.unwrap());
    writer.rollback().await.unwrap();
    assert_eq!(post(&service, "/exports", None, &body).await.status(), 202);
}

#[tokio::test]
async fn a_slip_in_a_path_makes_no_consumer() {
    let (database, service) = serving_users(0).await;
    for (word, call) in [
        ("full", "/exports/full"),
        ("incremental", "/exports/incremental"),
        ("delta", "/exports/delta"),
        ("watermark", "/exports/watermark"),
    ] {
        let answer = service.call("POST", &format!("/export/{word}"), &[("X-Consumer-ID", "search")]).await;
        let problem: Value = answer.json().await.unwrap();
        assert_eq!((&problem["status"], &problem["code"]), (&json!(404), &json!("not_found")), "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("{call},")) && detail.contains("X-Consumer-ID"), "{detail}");
    }
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 0);
    // Whose name only begins like that is a consumer, and so is who says so in the header.
    assert_eq!(service.call("POST", "/export/full-text", &[]).await.status(), 202);
    assert_eq!(service.call("POST", "/exports/incremental", &[("X-Consumer-ID", "full")]).await.status(), 202);
}
