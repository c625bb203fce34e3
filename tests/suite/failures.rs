//! Failures of an export: a disk, a folder, a table, a role, a timeout or a lock.

use std::path::Path;

use rustix::process::{Resource, Rlimit};
use serde_json::{Value, json};

use crate::catalog::post;
use crate::harness::{Csv, Database, Service, Start, eventually, refusal, serving_users, until};

#[tokio::test]
async fn a_failed_disk_operation_is_tried_again_with_a_new_file() {
    let database = Database::with_users(5).await;
    // One worker takes the jobs in their order, so each is hit by the next fault.
    let faults = "sink.create=error,sink.write=error,sink.fsync=error,sink.publish=error,sink.publish.renamed=error";
    let api = Start::on(&database).arguments(&["serve", "--no-workers"]).service().await;
    let mut ids = Vec::new();
    for consumer in ["create", "write", "fsync", "publish"] {
        ids.push(api.submit("full", consumer).await);
    }
    let next_in_lane = api.submit("incremental", "create").await;

    let retried = async |id: &str, code: &str| {
        let waiting = eventually("a retry", || async {
            Some(api.job(id).await).filter(|job| job["status"] == "pending" && job["attempt"] == 1)
        });
        assert_eq!(waiting.await["error"]["code"], code);
    };
    let start = Start::on(&database).sharing_output(&api).with("FAILPOINTS", faults).with("WORKERS", 1);
    // A retry waits for two seconds.
    let (service, ..) = tokio::join!(
        start.service(),
        retried(&ids[0], "storage_full"),
        retried(&ids[1], "storage_full"),
        retried(&ids[2], "internal")
    );
    for id in &ids[..3] {
        service.says("export_retried", id).await;
    }
    assert_eq!(service.watermark("create").await, None);
    assert_eq!(service.job(&next_in_lane).await["attempt"], 0, "a job that waits for its retry blocks its lane");

    let mut names = Vec::new();
    for (id, attempt) in ids.iter().chain([&next_in_lane]).zip([2, 2, 2, 1, 1]) {
        let job = service.ended(id).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(attempt)), "{job}");
        assert_eq!(job["error"], Value::Null);
        assert!(service.watermark(job["consumerId"].as_str().unwrap()).await.is_some());
        assert_eq!(Csv::read(&service.path(&job)).rows.len(), if *id == next_in_lane { 0 } else { 5 });
        names.push(job["outputFilename"].as_str().unwrap().to_owned());
    }
    names.sort();
    assert_eq!(service.files(), names, "nothing hidden is left");
}

/// Limits the size of the service's files. The limit acts like a quota and, unlike a full disk, anybody can set it.
fn limit_files(service: &Service, bytes: u64) {
    let pid = rustix::process::Pid::from_raw(service.pid().as_raw());
    let limit = Rlimit { current: Some(bytes), maximum: None };
    rustix::process::prlimit(pid, Resource::Fsize, limit).unwrap();
}

#[tokio::test]
async fn a_file_past_a_limit_is_tried_again_and_the_service_lives() {
    let (_, service) = serving_users(20_000).await;
    limit_files(&service, 500_000);
    let id = service.submit("full", "one").await;
    let waiting = eventually("a retry", || async {
        Some(service.job(&id).await).filter(|job| job["status"] == "pending" && job["attempt"] == 1)
    });
    assert_eq!(waiting.await["error"]["code"], "storage_full");
    assert!(service.files().is_empty(), "{:?}", service.files());
    assert_eq!(service.call("GET", "/health", &[]).await.status(), 200);

    limit_files(&service, u64::MAX);
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(2)), "{job}");
}

#[tokio::test]
async fn a_limit_of_postgres_that_an_export_meets_is_quoted() {
    let (database, service) = serving_users(60_000).await;
    service.export("full", "a").await;
    let name = database.options.get_database().unwrap();
    let limits = format!(
        "update users set name = name || 'x' where id % 2 = 0; delete from users where id % 3 = 0;
         alter database {name} set work_mem = '64kB'; alter database {name} set temp_file_limit = '64kB'"
    );
    database.run(&limits).await;
    let again = Start::on(&database).sharing_output(&service);
    service.stop().await;
    let service = again.service().await;
    let id = service.submit("delta", "a").await;
    let error = async || Some(service.job(&id).await["error"].clone()).filter(|error| !error.is_null());
    let error = eventually("an attempt fails", error).await;
    assert_eq!(error["code"], "source_unavailable", "{error}");
    assert!(error["detail"].as_str().unwrap().contains("temp_file_limit"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_reported_with_its_folder_and_the_missing_bytes() {
    let database = Database::new().await;
    let start = || Start::on(&database).with("FAILPOINTS", "sink.room=error");
    let output = async |service: &Service| {
        let ready = service.call("GET", "/health/ready", &[]).await;
        assert_eq!(ready.status(), 503);
        ready.json::<Value>().await.unwrap()["checks"]["output"].as_str().unwrap().to_owned()
    };
    let service = start().service().await;
    let full = output(&service).await;
    let folder = service.output().file_name().unwrap().to_str().unwrap().to_owned();
    assert!(full.contains(&folder) && full.contains("more bytes"), "{full}");
    service.stop().await;
    // Anybody may look where calls need keys.
    let service = start().with("AUTH", "keys").service().await;
    assert_eq!(output(&service).await, "the output folder or bucket has no room left");
}

#[tokio::test]
async fn without_an_output_folder_a_job_fails_and_no_other_is_accepted() {
    let (database, service) = serving_users(5).await;
    service.export("full", "a").await;
    let watermark = service.watermark("a").await;
    database.add_users(6, 7).await;

    let (held, id) = service.held_export(&database, "delta", "a").await;
    let elsewhere = service.output().with_extension("elsewhere");
    std::fs::rename(service.output(), &elsewhere).unwrap();
    held.rollback().await.unwrap();
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("output_missing")));
    assert_eq!((&job["watermarkTo"], &job["sha256"]), (&Value::Null, &Value::Null));
    assert!(!job["error"]["detail"].as_str().unwrap().contains('/'), "no path: {job}");
    assert!(service.says("export_failed", &id).await["error"].is_string());
    assert_eq!(service.call("GET", "/health/ready", &[]).await.status(), 503);
    let refuses = async || {
        for body in [json!({}), json!({ "datasets": "*" })] {
            let answer = post(&service, "/exports/delta", Some("a"), &body).await;
            assert_eq!(refusal(answer).await, (503, "output_missing".to_owned()), "{body}");
        }
    };
    refuses().await;
    std::fs::write(service.output(), "a file").unwrap();
    refuses().await;
    // As an unmounted disk leaves its mount point: what was written there would be hidden by the disk's return.
    std::fs::remove_file(service.output()).unwrap();
    std::fs::create_dir(service.output()).unwrap();
    refuses().await;
    assert_eq!(service.watermark("a").await, watermark);
    // The folder is there, so it isn't called missing.
    let ready = service.call("GET", "/health/ready", &[]).await.json::<Value>().await.unwrap();
    let gone = "the `.cdc-export-store` of the output folder or bucket is gone: bring the right one back, or restart to adopt this one";
    assert_eq!(ready["checks"]["output"], gone, "{ready}");
    assert!(std::fs::read_dir(service.output()).unwrap().next().is_none(), "nothing is written there");

    std::fs::remove_dir(service.output()).unwrap();
    std::fs::rename(&elsewhere, service.output()).unwrap();
    let (job, file) = service.export("incremental", "a").await;
    assert_eq!(file.ids(), [6, 7]);
    assert_eq!(job["watermarkFrom"].as_str(), watermark.as_deref());
}

#[tokio::test]
async fn a_restart_adopts_an_empty_folder_and_goes_on_where_the_database_is() {
    let (database, service) = serving_users(5).await;
    let (old, _) = service.export("full", "a").await;
    for entry in std::fs::read_dir(service.output()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    database.run("update users set name = 'x' where id = 3").await;
    let again = Start::on(&database).sharing_output(&service);
    service.stop().await;
    let again = again.service().await;
    let (delta, file) = again.export("delta", "a").await;
    assert_eq!((file.ids(), &delta["watermarkFrom"]), (vec![3], &old["watermarkTo"]));
    // A file that was lost with the old folder is reported as elsewhere. No other file is served in its place.
    let path = format!("/exports/{}/download", old["jobId"].as_str().unwrap());
    assert_eq!(
        crate::harness::refusal(again.call("GET", &path, &[]).await).await,
        (503, "file_on_other_host".to_owned())
    );
}

#[tokio::test]
async fn a_file_that_has_the_name_stays_and_the_export_takes_the_next() {
    let (database, service) = serving_users(5).await;
    let held = database.hold_exports().await;
    let id = service.submit("full", "a").await;
    let name = service.job(&id).await["outputFilename"].as_str().unwrap().to_owned();
    let stem = name.strip_suffix(".csv").unwrap();
    // A service on another database.
    let theirs = [name.clone(), format!("{stem}-3.csv"), format!("{stem}-4.csv")];
    for name in &theirs {
        std::fs::write(service.output().join(name), "theirs").unwrap();
    }
    std::os::unix::fs::symlink("/nowhere", service.output().join(format!("{stem}-2.csv"))).unwrap();
    held.rollback().await.unwrap();

    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["outputFilename"]), (&json!("completed"), &json!(format!("{stem}-5.csv"))));
    assert_eq!(Csv::read(&service.path(&job)).rows.len(), 5);
    for name in &theirs {
        assert_eq!(std::fs::read_to_string(service.output().join(name)).unwrap(), "theirs");
    }
    assert_eq!(std::fs::read_link(service.output().join(format!("{stem}-2.csv"))).unwrap(), Path::new("/nowhere"));
    assert_eq!(service.files().len(), 5);
    let download = service.call("GET", &format!("/exports/{id}/download"), &[]).await;
    assert_eq!(download.bytes().await.unwrap(), std::fs::read(service.path(&job)).unwrap());
}

#[tokio::test]
async fn a_table_that_is_gone_or_untracked_since_the_request_is_told() {
    let (database, service) = serving_users(0).await;
    // Asked for before, and met by the export.
    for (change, code) in [("delete from cdc_export.tracked", "not_tracked"), ("drop table users", "table_missing")] {
        let tracked = "insert into cdc_export.tracked (schema_name, table_name, key) values ('public', 'users', '{id}') on conflict do nothing";
        database.run(tracked).await;
        let mut held = database.hold_exports().await;
        let id = service.submit("full", "a").await;
        sqlx::raw_sql(change).execute(&mut *held).await.unwrap();
        held.commit().await.unwrap();
        let job = service.ended(&id).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{change}");
        assert_eq!(job["attempt"], 1, "no retry helps");
    }
    assert_eq!(service.watermark("a").await, None);
    assert_eq!(service.files(), Vec::<String>::new());
}

#[tokio::test]
async fn a_role_that_may_not_see_every_row_exports_none() {
    let database = Database::with_users(5).await;
    let role = database.role().await;
    let statements = format!(
        "alter role {role} password 'secret-of-the-role';
         grant usage, create on schema public, cdc_export to {role};
         grant all on all tables in schema public, cdc_export to {role};
         grant usage on all sequences in schema public, cdc_export to {role};
         revoke all on users from {role}"
    );
    database.run(&statements).await;
    let service = Start::plain().with("DATABASE_URL", database.url_as(&role, "secret-of-the-role")).service().await;
    for change in [
        "select".to_owned(),
        format!(
            "grant select on users to {role}; alter table users enable row level security;
             create policy low on users using (id < 3)"
        ),
    ] {
        database.run(&change).await;
        for export_type in ["full", "delta"] {
            service
                .refuses(
                    "POST",
                    &format!("/exports/{export_type}"),
                    &[("X-Consumer-ID", "a")],
                    409,
                    "permission_denied",
                )
                .await;
        }
    }
    assert_eq!(service.watermark("a").await, None);
    assert!(!service.log().contains("secret-of-the-role"));
    database.run("alter table users disable row level security").await;
    assert_eq!(service.export("full", "a").await.1.rows.len(), 5);
}

#[tokio::test]
async fn timeouts_of_the_server_do_not_end_an_export() {
    let database = Database::new_with("insert into users (name, email, created_at, updated_at) select repeat('x', 255), n, now(), now() from generate_series(1, 20000) n").await;
    let name: String = database.one("select current_database()::text").await;
    for setting in [
        "statement_timeout = '1s'",
        "lock_timeout = '1s'",
        "idle_in_transaction_session_timeout = '1s'",
        "default_transaction_isolation = 'serializable'",
    ] {
        database.run(&format!("alter database {name} set {setting}")).await;
    }
    // The first stops the COPY in the middle of its rows, the second leaves the leader's transaction without a sign.
    let service =
        Start::on(&database).with("FAILPOINTS", "sink.write=sleep:1500,worker.staged=sleep:1500").service().await;
    let (held, id) = service.held_export(&database, "full", "a").await;
    let waiting = "select clock_timestamp() > started_at + interval '1.5 s' from exports";
    until("longer than the timeouts", async || database.one::<bool>(waiting).await).await;
    held.rollback().await.unwrap();
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(1)), "{job}");
    assert_eq!(job["rowsExported"], 20_000);
}

#[tokio::test]
async fn a_lock_on_the_watermark_makes_the_commit_try_again() {
    let (database, service) = serving_users(5).await;
    service.export("full", "a").await;
    database.add_users(6, 8).await;
    let held = database.open("update watermarks set updated_at = now()").await;
    let id = service.submit("delta", "a").await;
    service.says("export_retried", &id).await;
    held.rollback().await.unwrap();
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"], &job["rowsExported"]), (&json!("completed"), &json!(2), &json!(3)));
}
