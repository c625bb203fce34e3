//! A lane as its readers see it: what was published, in the order in which it is to be loaded, and nothing of it passed
//! by.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Csv, Database, Start, needs_full, serving_users, until};
use crate::lost_files::dead_after_a_commit;

#[tokio::test]
async fn a_committed_export_without_its_name_is_not_overtaken() {
    let database = Database::with_users(5).await;
    let first = Start::on(&database).service().await;
    first.export("full", "a").await;
    database.add_users(6, 8).await;
    let again = Start::on(&database).sharing_output(&first);
    first.stop().await;
    let (dead, lost, _) = dead_after_a_commit(&database, again, "/exports/delta", Some("a")).await;
    database.add_users(9, 9).await;

    // A process with another folder can't give the file its name, and could export what came after it.
    let elsewhere = Start::on(&database).service().await;
    let next = elsewhere.submit("delta", "a").await;
    let other = elsewhere.submit("full", "b").await;
    assert_eq!(elsewhere.ended(&other).await["number"], 1, "another lane's, and it is taken after that one");
    for _ in 0..3 {
        assert_eq!(elsewhere.export("delta", "b").await.0["status"], "completed");
    }
    assert_eq!(elsewhere.job(&next).await["status"], "pending");
    assert_eq!(elsewhere.job(&lost).await["status"], "processing");
    let metrics = elsewhere.call("GET", "/metrics", &[]).await.text().await.unwrap();
    assert!(metrics.contains("cdc_export_unpublished_jobs 1\n"), "{metrics}");
    let waits = metrics.lines().find_map(|line| line.strip_prefix("cdc_export_unpublished_seconds ")).unwrap();
    assert!(waits.parse::<f64>().unwrap() > 0.0, "{metrics}");
    // A reader doesn't see the unpublished export of the lane.
    let completed = elsewhere.get("/exports?consumer=a&status=completed").await;
    assert_eq!(completed["items"].as_array().unwrap().len(), 1);

    let heir = Start::on(&database).sharing_output(&dead).service().await;
    let (lost, next) = (heir.ended(&lost).await, heir.ended(&next).await);
    assert_eq!((&lost["status"], &lost["number"]), (&json!("completed"), &json!(2)), "{lost}");
    assert_eq!((&next["status"], &next["number"]), (&json!("completed"), &json!(3)), "{next}");
    assert_eq!(Csv::read(&heir.path(&lost)).ids(), [6, 7, 8]);
    let ad_hoc: Value = heir.call("POST", "/exports", &[]).await.json().await.unwrap();
    assert_eq!(heir.ended(ad_hoc["jobId"].as_str().unwrap()).await["number"], Value::Null, "ad hoc there is no order");
    let metrics = heir.call("GET", "/metrics", &[]).await.text().await.unwrap();
    assert!(metrics.contains("cdc_export_unpublished_seconds 0\n"), "{metrics}");
}

/// The one way out where the folder is gone for good: what the lane waits for is given up.
#[tokio::test]
async fn an_export_that_is_given_up_frees_its_lane_and_has_no_number() {
    let database = Database::with_users(5).await;
    let (dead, lost, _) = dead_after_a_commit(&database, Start::on(&database), "/exports/full", Some("a")).await;
    let heir = Start::on(&database).service().await;
    let delta = heir.submit("delta", "a").await;
    let full = heir.submit("full", "a").await;
    let path = format!("/exports/{lost}");
    heir.refuses("DELETE", &path, &[], 409, "still_open").await;
    // Pretends that this was a while ago.
    let earlier =
        "update cdc_export.exports set finished_at = finished_at - interval '1 minute' where status = 'completed'";
    database.run(earlier).await;
    assert_eq!(heir.call("DELETE", &path, &[]).await.status(), 204);
    let (lost, delta, full) = (heir.job(&lost).await, heir.ended(&delta).await, heir.ended(&full).await);
    assert_eq!((&lost["error"]["code"], &lost["number"]), (&json!("file_lost"), &Value::Null), "{lost}");
    needs_full(&delta, "file_lost");
    assert_eq!((&full["status"], &full["number"]), (&json!("completed"), &json!(1)), "{full}");
    // A process that returns to the folder removes the staged file.
    let back = Start::on(&database).sharing_output(&dead).service().await;
    until("the staged file goes", async || back.files().is_empty()).await;
}

/// In the folder itself, the staged file is gone with the answer.
#[tokio::test]
async fn what_is_given_up_leaves_no_file() {
    // After a clock was set back, nothing waits for the time that it had.
    for moved in ["- interval '1 minute'", "+ interval '1 hour'"] {
        let database = Database::with_users(5).await;
        let (dead, lost, _) = dead_after_a_commit(&database, Start::on(&database), "/exports/full", Some("a")).await;
        // Without workers, nobody gives the file its name, and nobody sweeps.
        let api = Start::on(&database).sharing_output(&dead).arguments(&["serve", "--no-workers"]).service().await;
        assert_eq!(api.files().len(), 1);
        database.run(&format!("update cdc_export.exports set finished_at = finished_at {moved}")).await;
        assert_eq!(api.call("DELETE", &format!("/exports/{lost}"), &[]).await.status(), 204, "{moved}");
        assert_eq!(api.files(), Vec::<String>::new());
        assert_eq!(api.job(&lost).await["error"]["code"], "file_lost", "{moved}");
    }
}

/// A clock that ran ahead, or a failover to a slower one: what comes after is later all the same.
#[tokio::test]
async fn a_clock_that_was_set_back_changes_no_order() {
    let (database, service) = serving_users(5).await;
    let (full, _) = service.export("full", "a").await;
    // Makes the times those of the clock before it was set back.
    let changes = "update cdc_export.jobs
         set created_at = created_at + interval '1 hour', started_at = started_at + interval '1 hour';
         update cdc_export.exports
         set finished_at = finished_at + interval '1 hour', published_at = published_at + interval '1 hour'";
    database.run(changes).await;
    let mut jobs = vec![service.job(full["jobId"].as_str().unwrap()).await];
    for n in 0..4 {
        database.add_users(6 + n, 6 + n).await;
        let (job, file) = service.export("delta", "a").await;
        assert_eq!(file.ids(), [6 + n]);
        jobs.push(job);
    }
    let cancelled = async {
        let held = database.hold_exports().await;
        let id = service.submit("delta", "a").await;
        service.call("POST", &format!("/exports/{id}/cancel"), &[]).await;
        service.becomes(&id, "cancelled").await;
        held.rollback().await.unwrap();
        service.job(&id).await
    };
    jobs.push(cancelled.await);
    for (earlier, later) in jobs.iter().zip(&jobs[1..]) {
        assert!(earlier["createdAt"].as_str() < later["createdAt"].as_str(), "{earlier} {later}");
        assert!(earlier["finishedAt"].as_str() <= later["finishedAt"].as_str(), "{earlier} {later}");
        assert!(later["durationSeconds"].as_f64().unwrap_or(0.0) >= 0.0, "{later}");
    }
    let newest_first: Vec<Value> = jobs.iter().rev().map(|job| job["jobId"].clone()).collect();
    for (query, skipped) in [
        ("consumer=a&dataset=users", 0),
        ("consumer=a", 0),
        ("limit=200", 0),
        ("consumer=a&dataset=users&status=completed", 1),
    ] {
        let page = service.get(&format!("/exports?{query}")).await;
        let listed: Vec<Value> = page["items"].as_array().unwrap().iter().map(|job| job["jobId"].clone()).collect();
        assert_eq!(listed, newest_first[skipped..], "{query}");
    }
    // Only the newest file stays.
    let keeping = Start::on(&database).sharing_output(&service).with("RETAIN_FILES", "90000d,1");
    service.stop().await;
    let keeping = keeping.service().await;
    let newest = [jobs[4]["outputFilename"].as_str().unwrap().to_owned()];
    until("older files go", async || keeping.files() == newest).await;
}

/// A job that was ready before the database's clock was set back is ready afterwards. The job of a dead worker is taken
/// over.
#[tokio::test]
async fn a_clock_that_was_set_back_holds_no_job_up() {
    let database = Database::with_users(5).await;
    let start = || Start::on(&database).with("LEASE_SECONDS", 1);
    let mut doomed = start().with("FAILPOINTS", "worker.opened=hold").service().await;
    let api = start().sharing_output(&doomed).arguments(&["serve", "--no-workers"]).service().await;
    let begun = doomed.submit("full", "a").await;
    doomed.reaches("worker.opened").await;
    doomed.signal(Signal::SIGKILL);
    doomed.dies().await;
    let waits = api.submit("full", "b").await;
    // The clock's step is an hour of what is written, as it is seen from then on.
    let changes = "update cdc_export.jobs
                   set created_at = created_at + interval '1 hour', run_at = run_at + interval '1 hour',
                     lease_expires_at = lease_expires_at + interval '1 hour'";
    database.run(changes).await;
    let delivery = "insert into cdc_export.deliveries (id, job, endpoint, event, run_at, rescheduled_at)
                    select id, id, 'gone', 'failed', run_at, run_at from cdc_export.jobs";
    database.run(delivery).await;
    let _stopped = database.open("select from cdc_export.deliveries for update").await;
    let heir = start().sharing_output(&api).service().await;
    assert_eq!(heir.ended(&waits).await["status"], "completed");
    assert_eq!(heir.ended(&begun).await["status"], "completed");
}
