//! A job whose worker died, was stopped or lost its lease: its file and its position are both there, or neither.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Csv, Database, Service, Start, eventually, until};

/// Returns the status of the only job, from the table itself: while its services are stopped, no API answers.
async fn status(database: &Database) -> String {
    database.one("select status from cdc_export.jobs").await
}

/// Submits an export that kills its service, and gives its id.
pub(crate) async fn killed_by_an_export(database: &Database, service: &mut Service) -> String {
    service.dies_of("full", "a", &json!({})).await;
    database.one("select id::text from cdc_export.jobs").await
}

/// Everything in the folder is the file of this job, and the watermark is its.
async fn holds_only(service: &Service, job: &Value) {
    let name = job["outputFilename"].as_str().unwrap();
    until("nothing else is in the folder", async || service.files() == [name]).await;
    assert_eq!(Csv::read(&service.path(job)).rows.len() as u64, job["rowsExported"].as_u64().unwrap());
    assert_eq!(std::fs::metadata(service.path(job)).unwrap().len(), job["bytesWritten"].as_u64().unwrap());
    assert_eq!(service.watermark("a").await.as_deref(), job["watermarkTo"].as_str());
}

#[tokio::test]
async fn a_crash_after_the_commit_loses_nothing() {
    let database = Database::with_users(5).await;
    let mut dead = Start::on(&database).with("FAILPOINTS", "worker.committed=kill").service().await;
    let id = killed_by_an_export(&database, &mut dead).await;
    assert_eq!(status(&database).await, "committed");
    let hidden = dead.files();
    assert!(hidden.len() == 1 && hidden[0].starts_with('.'), "{hidden:?}");

    // The clock was set back since.
    database.run("update cdc_export.exports set finished_at = now() + interval '1 hour'").await;
    // Its publication can't be recorded while somebody holds the row.
    let held = database.open("select from cdc_export.exports for update").await;
    let heir = Start::on(&database).sharing_output(&dead).service().await;
    let named = || async { Some(heir.files()).filter(|files| !files[0].starts_with('.')) };
    let files = eventually("the file has its name", named).await;
    let job = heir.job(&id).await;
    assert_eq!(job["status"], "processing");
    assert_eq!(job["finishedAt"], Value::Null);
    assert_eq!(job["sha256"], Value::Null);
    assert_eq!(job["progress"], 99);
    assert_eq!(files, [job["outputFilename"].as_str().unwrap()]);
    assert_eq!(heir.call("GET", &format!("/exports/{id}/download"), &[]).await.status(), 409);
    assert_eq!(heir.call("POST", &format!("/exports/{id}/cancel"), &[]).await.status(), 409);
    held.rollback().await.unwrap();

    let job = heir.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"], &job["rowsExported"]), (&json!("completed"), &json!(1), &json!(5)));
    holds_only(&heir, &job).await;
}

#[tokio::test]
async fn a_crash_at_any_step_is_made_good() {
    for (place, attempts) in [
        ("worker.claimed", 2),
        ("sink.create", 2),
        ("worker.opened", 2),
        ("sink.write", 2),
        ("sink.fsync", 2),
        ("worker.staged", 2),
        ("worker.extended", 2),
        ("worker.commit", 2),
        // After the commit.
        ("sink.publish", 1),
        ("sink.publish.renamed", 1),
    ] {
        let database = Database::with_users(5).await;
        let fault = format!("{place}=kill");
        let mut dead = Start::on(&database).with("FAILPOINTS", fault).with("LEASE_SECONDS", 5).service().await;
        let id = killed_by_an_export(&database, &mut dead).await;
        assert_eq!(status(&database).await, if attempts == 2 { "processing" } else { "committed" }, "{place}");
        let moved: bool = database.one("select exists (select from watermarks)").await;
        assert_eq!(moved, attempts == 1, "{place}: the watermark moves with the commit");

        // Its own lease would outlast every wait: what counts is the dead one's.
        let heir = Start::on(&database).with("LEASE_SECONDS", 600).sharing_output(&dead).service().await;
        let job = heir.ended(&id).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(attempts)), "{place}: {job}");
        assert_eq!(job["rowsExported"], 5);
        holds_only(&heir, &job).await;
    }
}

#[tokio::test]
async fn a_killed_workers_job_is_taken_over_long_before_its_lease_is_over() {
    const LEASE: u64 = 120;
    let database = Database::with_users(5).await;
    let start = || Start::on(&database).with("LEASE_SECONDS", LEASE);
    let mut doomed = start().with("FAILPOINTS", "worker.opened=hold").service().await;
    let heir = start().sharing_output(&doomed).arguments(&["serve", "--no-workers"]).service().await;
    let id = doomed.submit("full", "one").await;
    doomed.reaches("worker.opened").await;
    let _worker = start().sharing_output(&heir).service().await;
    doomed.signal(Signal::SIGKILL);
    doomed.dies().await;
    let killed = Instant::now();
    let job = eventually("another attempt", async || Some(heir.job(&id).await).filter(|job| job["attempt"] == 2)).await;
    // Promised are 3 seconds, on a machine that isn't busy.
    println!("taken over {:?} after the kill, with a lease of {LEASE} s: {job}", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(LEASE / 4));
    assert_eq!(heir.ended(&id).await["status"], "completed");
}

#[tokio::test]
async fn a_job_whose_workers_vanish_fails_in_the_end() {
    let database = Database::with_users(5).await;
    let doomed = || {
        Start::on(&database).with("FAILPOINTS", "worker.staged=kill").with("LEASE_SECONDS", 1).with("MAX_ATTEMPTS", 2)
    };
    let mut first = doomed().service().await;
    let id = killed_by_an_export(&database, &mut first).await;
    let mut second = doomed().sharing_output(&first).service().await;
    second.dies().await;
    let heir = Start::on(&database).sharing_output(&first).service().await;
    let next = heir.submit("full", "a").await;
    let job = heir.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("failed"), &json!(2)), "{job}");
    assert_eq!((&job["error"]["code"], &job["watermarkTo"]), (&json!("attempts_exhausted"), &Value::Null));
    let next = heir.ended(&next).await;
    assert_eq!((&next["status"], &next["watermarkFrom"]), (&json!("completed"), &Value::Null), "{next}");
    holds_only(&heir, &next).await;
}

/// A service that is stopped by SIGSTOP at a failpoint of its only job.
async fn frozen_at(place: &str, start: Start) -> Service {
    let service = start.with("FAILPOINTS", format!("{place}=hold")).with("WORKERS", 1).service().await;
    service.reaches(place).await;
    service.signal(Signal::SIGSTOP);
    service
}

async fn thaw(service: &Service, place: &str) {
    service.signal(Signal::SIGCONT);
    service.release(place).await;
}

#[tokio::test]
async fn stale_worker_cannot_commit() {
    let database = Database::with_users(5).await;
    // Submitted by a service that is gone, so that the job is there when the next one starts.
    let submitter = Start::on(&database).with("FAILPOINTS", "worker.claimed=kill").with("LEASE_SECONDS", 1);
    let mut submitter = submitter.service().await;
    let id = killed_by_an_export(&database, &mut submitter).await;

    let on = || Start::on(&database).sharing_output(&submitter);
    let stale = frozen_at("worker.extended", on().with("LEASE_SECONDS", 1)).await;
    // The present owner stands at the same place: the job is processing, under another token.
    let owner = frozen_at("worker.extended", on()).await;
    let token = "select lease_token::text from cdc_export.jobs";
    let owned: String = database.one(token).await;

    thaw(&stale, "worker.extended").await;
    stale.says("lease_lost", &id).await;
    assert_eq!(status(&database).await, "processing");
    assert_eq!(database.one::<String>(token).await, owned.clone());
    assert!(!database.one::<bool>("select exists (select from watermarks)").await);
    let theirs = || async { Some(stale.files()).filter(|files| matches!(&files[..], [one] if one.contains(&owned))) };
    eventually("the stale attempt's file is swept, the other's stays", theirs).await;

    thaw(&owner, "worker.extended").await;
    let job = owner.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(3)), "{job}");
    holds_only(&owner, &job).await;
    // Either may have given the file its name: any process that sees the folder does.
    let completed = || stale.events("export_completed").len() + owner.events("export_completed").len();
    until("its completion is logged", async || completed() > 0).await;
    assert_eq!(completed(), 1);
}

#[tokio::test]
async fn a_worker_that_slept_through_its_lease_touches_nothing() {
    for place in ["worker.staged", "worker.commit"] {
        let database = Database::with_users(5).await;
        let start = Start::on(&database).with("FAILPOINTS", format!("{place}=hold"));
        let stale = start.with("LEASE_SECONDS", 1).with("WORKERS", 1).service().await;
        let id = stale.submit("full", "a").await;
        stale.reaches(place).await;
        stale.signal(Signal::SIGSTOP);
        let other = Start::on(&database).sharing_output(&stale).service().await;
        if place == "worker.commit" {
            // It holds the job's row. Postgres ends it after a lease without a sign.
            let leaders = "select count(*) from pg_stat_activity
                           where datname = current_database() and state like 'idle in transaction%' and backend_xid is not null";
            until("the stale leader's end", async || database.one::<i64>(leaders).await == 0).await;
        }
        let job = other.ended(&id).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(2)), "{job}");
        let content = std::fs::read(other.path(&job)).unwrap();
        thaw(&stale, place).await;
        stale.says("lease_lost", &id).await;
        holds_only(&other, &job).await;
        assert_eq!(std::fs::read(other.path(&job)).unwrap(), content);
        assert_eq!(stale.job(&id).await, job, "not a word of it has changed");
        assert_eq!(database.one::<i64>("select version from watermarks").await, 1, "moved once");
        assert_eq!(stale.events("export_completed").len(), 0);
    }
}
