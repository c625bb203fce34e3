//! A job from its request to its end: its lane, a cancel, a shutdown, its row, its statements and its log events.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Csv, Database, Service, Start, refusal, serving_users, until};

async fn cancel(service: &Service, id: &str) -> reqwest::Response {
    service.call("POST", &format!("/exports/{id}/cancel"), &[]).await
}

#[tokio::test]
async fn a_lane_is_worked_in_order_and_others_overtake_it() {
    let (database, service) = serving_users(5).await;
    let held = database.hold_exports().await;
    let (first, second) = (service.submit("full", "a").await, service.submit("delta", "a").await);
    let other = service.submit("full", "b").await;

    service.becomes(&other, "processing").await;
    assert_eq!(service.job(&first).await["status"], "processing");
    assert_eq!(service.job(&second).await["status"], "pending", "an earlier job of its lane is open");

    held.rollback().await.unwrap();
    let (first, second, other) =
        (service.ended(&first).await, service.ended(&second).await, service.ended(&other).await);
    for job in [&first, &second, &other] {
        assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(1)), "{job}");
    }
    assert!(first["finishedAt"].as_str().unwrap() < second["startedAt"].as_str().unwrap());
    assert_eq!(second["watermarkFrom"], first["watermarkTo"]);
    assert_eq!(second["rowsExported"], 0);
}

#[tokio::test]
async fn an_accepted_cancel_never_completes() {
    for place in ["sink.write", "worker.staged", "worker.extended"] {
        let (_database, service, job) = held_at(place).await;
        let (files, watermark) = (service.files(), service.watermark("a").await);
        let (running, waiting) = (service.submit("delta", "a").await, service.submit("full", "a").await);
        service.reaches(place).await;
        assert_eq!(cancel(&service, &waiting).await.status(), 202);
        assert_eq!(service.job(&waiting).await["status"], "cancelled", "nobody has to be asked");
        assert_eq!(cancel(&service, &running).await.status(), 202);
        if place == "sink.write" {
            // While the write goes on. At the other places the worker itself is held.
            service.becomes(&running, "cancelled").await;
        }
        service.release(place).await;
        let cancelled = service.ended(&running).await;
        assert_eq!((&cancelled["status"], &cancelled["error"]), (&json!("cancelled"), &Value::Null), "at {place}");
        assert!(cancelled["progress"].as_u64().is_some_and(|percent| percent < 100), "not at its end: {cancelled}");
        assert_eq!(cancel(&service, &running).await.status(), 200, "it is cancelled already");
        assert_eq!(service.job(&waiting).await["attempt"], 0);
        until("no file is left", async || service.files() == files).await;
        assert_eq!(service.watermark("a").await, watermark, "at {place}");
        let (last, _) = service.export("delta", "a").await;
        assert_eq!((&last["rowsExported"], &last["watermarkFrom"]), (&json!(3), &job["watermarkTo"]), "{last}");
        assert_eq!(service.files().len(), 2);
    }
}

#[tokio::test]
async fn an_export_that_is_being_committed_is_not_cancelled() {
    let (_database, service, job) = held_at("worker.commit").await;
    let last = service.submit("delta", "a").await;
    service.reaches("worker.commit").await;
    assert_eq!(refusal(cancel(&service, &last).await).await, (409, "committing".to_owned()));
    service.release("worker.commit").await;
    let last = service.ended(&last).await;
    assert_eq!((&last["status"], &last["rowsExported"]), (&json!("completed"), &json!(3)), "{last}");
    assert_eq!(last["watermarkFrom"], job["watermarkTo"]);
    assert_eq!(refusal(cancel(&service, last["jobId"].as_str().unwrap()).await).await.0, 409);
    assert_eq!(service.files().len(), 2);
}

/// A service after a full export of users 1 to 5. It holds the next export at a failpoint, and that has three new
/// users.
async fn held_at(place: &str) -> (Database, Service, Value) {
    let database = Database::with_users(5).await;
    let service = Start::on(&database).with("FAILPOINTS", format!("{place}=hold@2")).service().await;
    let (job, _) = service.export("full", "a").await;
    database.add_users(6, 8).await;
    (database, service, job)
}

#[tokio::test]
async fn a_watermark_changed_while_an_export_runs_is_obeyed() {
    let database = Database::with_users(9).await;
    let set = |consumer: &str, minute: u32| {
        format!(
            "insert into watermarks (consumer_id, last_exported_at, updated_at)
             values ('{consumer}', '2026-01-01 00:0{minute}+00', now())
             on conflict (consumer_id, dataset) do update set last_exported_at = excluded.last_exported_at"
        )
    };
    for consumer in ["moved", "forgotten"] {
        database.run(&set(consumer, 3)).await;
    }
    let all = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    for (consumer, place, change, rows, from) in [
        ("moved", "worker.opened", set("moved", 7), &[8, 9][..], json!("2026-01-01T00:07:00.000000Z")),
        ("first", "worker.staged", set("first", 8), &[9], json!("2026-01-01T00:08:00.000000Z")),
        (
            "forgotten",
            "worker.extended",
            "delete from watermarks where consumer_id = 'forgotten'".to_owned(),
            &all,
            Value::Null,
        ),
    ] {
        let service = Start::on(&database).with("FAILPOINTS", format!("{place}=hold")).service().await;
        let id = service.submit("incremental", consumer).await;
        service.reaches(place).await;
        database.run(&change).await;
        service.release(place).await;
        service.says("export_retried", &id).await;
        let job = service.ended(&id).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(2)), "{job}");
        assert_eq!((Csv::read(&service.path(&job)).ids().as_slice(), &job["watermarkFrom"]), (rows, &from));
        assert_eq!(service.files().len(), 1);
    }
}

#[tokio::test]
async fn sigterm_gives_a_running_job_back() {
    let (database, mut service) = serving_users(5).await;
    let (held, id) = service.held_export(&database, "full", "a").await;
    assert_eq!(service.job(&id).await["attempt"], 1);
    service.signal(Signal::SIGTERM);
    assert_eq!(service.exit().await, Some(0));
    let (status, attempt): (String, i32) =
        sqlx::query_as("select status, attempt from exports").fetch_one(&database.pool).await.unwrap();
    assert_eq!((status.as_str(), attempt), ("pending", 0));
    assert_eq!(service.files(), Vec::<String>::new());
    service.says("export_released", &id).await;

    held.rollback().await.unwrap();
    let successor = Start::on(&database).sharing_output(&service).service().await;
    let job = successor.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(1)));
    let mut idle = successor;
    idle.signal(Signal::SIGTERM);
    assert_eq!(idle.exit().await, Some(0));
}

#[tokio::test]
async fn the_tables_of_jobs_and_exports_defend_themselves() {
    let (database, service) = serving_users(5).await;
    let (job, _) = service.export("full", "a").await;
    service.stop().await;
    // Inserts a job with one export. Each of them takes further columns with their values.
    let insert = |consumer: &str, job: (&str, &str), name: &str, export: (&str, &str)| {
        format!(
            "with job as (
               insert into cdc_export.jobs (id, consumer_id, export_type, format, max_attempts, turn, open_exports,
                 status{})
               values (gen_random_uuid(), '{consumer}', 'full', 'csv', 5, now(), {}) returning id, consumer_id)
             insert into cdc_export.exports (job, dataset, consumer_id, export_type, output_filename, lane_sequence{})
             select id, 'users', consumer_id, 'full', '{name}', {} from job",
            job.0, job.1, export.0, export.1
        )
    };
    let pending = ("", "1, 'pending'");
    let leased =
        (", lease_token, lease_owner, lease_expires_at", "1, 'processing', gen_random_uuid(), 'somebody', now()");
    let ended = ", status, finished_at";
    for statement in [
        insert("b", pending, "one", ("", "1")),
        insert("c", leased, "two", ("", "1")),
        insert("d", (", error_code", "0, 'failed', 'internal'"), "three", (ended, "1, 'failed', now()")),
        insert("d", ("", "0, 'cancelled'"), "four", (ended, "2, 'cancelled', now()")),
    ] {
        database.run(&statement).await;
    }
    let jobs = |change: &str| format!("update cdc_export.jobs set {change}");
    let exports = |change: &str| format!("update cdc_export.exports set {change}");
    let without_file =
        "published_at = null, staged_name = null, sha256 = null, destination_id = null where consumer_id = 'a'";
    let name = job["outputFilename"].as_str().unwrap().to_uppercase();
    for (fact, statement) in [
        ("a failed job is final", jobs("status = 'pending', open_exports = 1 where status = 'failed'")),
        ("a failed export is final", exports("status = 'open', finished_at = null where status = 'failed'")),
        ("a cancelled job is final", jobs("status = 'pending', open_exports = 1 where status = 'cancelled'")),
        ("a cancelled export is final", exports("status = 'open', finished_at = null where status = 'cancelled'")),
        ("no end becomes another", jobs("status = 'failed', error_code = 'internal' where status = 'cancelled'")),
        ("no export's end becomes another", exports("status = 'failed' where status = 'cancelled'")),
        ("a completed job is final", jobs("status = 'pending', open_exports = 1 where consumer_id = 'a'")),
        ("a completed job doesn't fail", jobs("status = 'failed', error_code = 'internal' where consumer_id = 'a'")),
        ("a published export is final", exports(&format!("status = 'open', finished_at = null, {without_file}"))),
        ("a published export doesn't fail", exports(&format!("status = 'failed', {without_file}"))),
        ("no other words of a job", jobs("status = 'paused' where consumer_id = 'b'")),
        ("no other words of an export", exports("status = 'pending' where consumer_id = 'b'")),
        ("processing has a lease", jobs("status = 'processing' where consumer_id = 'b'")),
        (
            "a lease is processing",
            jobs(
                "lease_token = gen_random_uuid(), lease_owner = 'x', lease_expires_at = now() where consumer_id = 'b'",
            ),
        ),
        ("a lease has a token", jobs("lease_token = null where consumer_id = 'c'")),
        ("a lease has an owner", jobs("lease_owner = null where consumer_id = 'c'")),
        ("a lease has an end", jobs("lease_expires_at = null where consumer_id = 'c'")),
        ("a job that ended has no open export", jobs("status = 'cancelled' where consumer_id = 'b'")),
        ("an open job has one", jobs("open_exports = 0 where consumer_id = 'b'")),
        ("an export that ended has its time", exports("status = 'cancelled' where consumer_id = 'b'")),
        ("an open export has none", exports("finished_at = now() where consumer_id = 'b'")),
        ("failed has a code", jobs("status = 'failed', open_exports = 0 where consumer_id = 'b'")),
        ("completed has a file", exports("status = 'completed', finished_at = now() where consumer_id = 'b'")),
        ("published is completed", exports("published_at = now(), number = 1 where consumer_id = 'b'")),
        ("progress is percent", exports("progress = 101 where consumer_id = 'b'")),
        ("a name is one file's, in any case", insert("b", pending, &name, ("", "2"))),
        ("a number is one export's", insert("b", pending, "five", ("", "1"))),
        ("a consumer has a lane", insert("b", pending, "five", ("", "null"))),
        ("an export has a job", exports("job = gen_random_uuid() where consumer_id = 'b'")),
        ("a watermark is finite", "update watermarks set last_exported_at = 'infinity'".to_owned()),
    ] {
        let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&database.pool).await;
        let code = refused.expect_err(fact).into_database_error().unwrap().code().unwrap().into_owned();
        assert!(code.starts_with("23"), "{fact}: {code} is no integrity constraint");
    }
}

#[tokio::test]
async fn many_consumers_on_two_services_are_served_in_order() {
    const CONSUMERS: usize = 24;
    const EXPORTS: [&str; 4] = ["full", "delta", "incremental", "delta"];
    let database = Database::with_users(200).await;
    // An owner may have set this for reasons of their own; it isn't what the queue's statements are written for.
    let name: String = database.one("select current_database()::text").await;
    database.run(&format!("alter database {name} set default_transaction_isolation = 'serializable'")).await;
    let one = Start::on(&database).with("WORKERS", 3).service().await;
    let two = Start::on(&database).with("WORKERS", 3).sharing_output(&one).service().await;
    let mut jobs = vec![Vec::new(); CONSUMERS];
    for (round, export_type) in EXPORTS.iter().enumerate() {
        for (consumer, ids) in jobs.iter_mut().enumerate() {
            let service = if (consumer + round) % 2 == 0 { &one } else { &two };
            ids.push(service.submit(export_type, &format!("c{consumer}")).await);
        }
        let from = 201 + 10 * round as i64;
        database.add_users(from, from + 9).await;
    }
    for ids in &jobs {
        let mut before = json!({ "watermarkTo": null, "finishedAt": "" });
        for id in ids {
            let job = two.ended(id).await;
            assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(1)), "{job}");
            assert_eq!(job["watermarkFrom"], before["watermarkTo"], "{job}");
            assert!(job["startedAt"].as_str() >= before["finishedAt"].as_str(), "{job} began before {before} ended");
            assert_eq!(Csv::read(&one.path(&job)).rows.len() as u64, job["rowsExported"].as_u64().unwrap());
            before = job;
        }
    }
    assert_eq!(one.files().len(), CONSUMERS * EXPORTS.len(), "nothing hidden is left");
    let done = [&one, &two].map(|service| service.events("export_completed").len());
    assert_eq!(done[0] + done[1], CONSUMERS * EXPORTS.len());
    assert!(done.iter().all(|&done| done > 0), "both work: {done:?}");
}

#[tokio::test]
async fn the_log_tells_of_each_export_and_of_no_value() {
    let (database, service) = serving_users(5).await;
    let (job, _) = service.export("full", "a").await;
    let id = job["jobId"].as_str().unwrap();
    let started = service.says("export_started", id).await;
    assert_eq!((&started["consumerId"], &started["exportType"]), (&json!("a"), &json!("full")));
    let completed = service.says("export_completed", id).await;
    assert_eq!(completed["rowsExported"], 5);
    assert!(completed["durationSeconds"].as_f64().unwrap() > 0.0);
    database.run("alter table users drop column name").await;
    let job = service.ended(&service.submit("full", "a").await).await;
    let failed = service.says("export_failed", job["jobId"].as_str().unwrap()).await;
    assert!(failed["error"].as_str().unwrap().contains("there is no column `name`"), "{failed}");
    let log = service.log();
    assert!(log.lines().all(|line| line.starts_with('{')), "JSON lines only");
    for secret in ["example.com", "User 1", &database.url()] {
        assert!(!log.contains(secret), "{secret}");
    }
}
