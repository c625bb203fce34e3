//! Jobs of several datasets: their exports are read at one snapshot, and completed together or not at all.

mod keys;
mod manifests;
mod retention;

use serde_json::{Value, json};

use crate::apply::pair::rows;
use crate::catalog::{Catalog, ended, export, post};
use crate::harness::{Database, Service, ends, eventually, far, reachable_folder, refusal, silent, until};
use crate::restores::cluster::Cluster;

/// The tables, each with ten rows of 100.
pub(crate) const TABLES: [&str; 3] = ["alpha", "beta", "gamma"];

/// Returns a database with these tables, tracked, and the operator's file.
pub(crate) async fn tables() -> (Database, Catalog) {
    let database = Database::new().await;
    for table in TABLES {
        let rows = format!(
            "create table {table} (k int primary key, n int not null);
             insert into {table} select k, 100 from generate_series(1, 10) k"
        );
        database.run(&rows).await;
    }
    let catalog = Catalog::of_tables(&TABLES);
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    (database, catalog)
}

/// Submits a job of consumer `a`, and returns the answer.
pub(crate) async fn submit(service: &Service, export_type: &str, body: Value) -> Value {
    let answer = post(service, &format!("/exports/{export_type}"), Some("a"), &body).await;
    let (status, answer) = (answer.status(), answer.json::<Value>().await.unwrap());
    assert_eq!(status, 202, "{body} {answer}");
    answer
}

/// Submits a job of consumer `a`, and returns the job when it has ended.
pub(crate) async fn export_all(service: &Service, export_type: &str, body: Value) -> Value {
    ended(service, &format!("/exports/{export_type}"), Some("a"), body).await
}

/// Submits a job of consumer `a` that kills the service, and returns its id. The answer may die with the service.
pub(crate) async fn killed_by_a_job(
    doomed: &mut Service,
    database: &Database,
    export_type: &str,
    body: Value,
) -> String {
    doomed.dies_of(export_type, "a", &body).await;
    database.one("select id::text from cdc_export.jobs order by id desc limit 1").await
}

pub(crate) fn id(job: &Value) -> &str {
    job["jobId"].as_str().unwrap()
}

/// Returns a member of each export of a job, as a list.
pub(crate) fn of_exports(job: &Value, member: &str) -> Value {
    job["exports"].as_array().unwrap().iter().map(|export| export[member].clone()).collect()
}

/// Checks that an export ends no statement of a writer that has one table and wants another one of the export's.
///
/// Once a session has waited for `deadlock_timeout`, one second, Postgres looks for a deadlock and ends the session's
/// statement if there is one. The writer begins to wait when Postgres has looked for the export's session already.
async fn ends_no_statement_of_a_writer(service: &Service, database: &Database, body: Value, [held, wanted]: [&str; 2]) {
    let mut writer = database.pool.begin().await.unwrap();
    let lock = |table| sqlx::raw_sql(sqlx::AssertSqlSafe(format!("lock table only {table}")));
    lock(held).execute(&mut *writer).await.unwrap();
    let submitted = submit(service, "full", body).await;
    database.waits_for(held).await;
    sqlx::raw_sql("select pg_sleep(1.2)").execute(&mut *writer).await.unwrap();
    lock(wanted).execute(&mut *writer).await.expect("no deadlock");
    writer.commit().await.unwrap();
    let ended = service.completes(id(&submitted)).await;
    assert_eq!(ended["attempt"], 1, "{ended}");
}

#[tokio::test]
async fn an_export_of_several_tables_ends_no_statement_of_a_writer_by_a_deadlock() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    ends_no_statement_of_a_writer(&service, &database, json!({ "datasets": TABLES }), ["gamma", "alpha"]).await;
}

#[tokio::test]
async fn an_export_of_partitions_ends_no_statement_of_a_writer_by_a_deadlock() {
    let (database, _) = tables().await;
    let parts = "create table parts (k int primary key) partition by list (k);
                 create table one partition of parts for values in (1)";
    database.run(parts).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"parts\"\ntable = \"parts\"\ncapture = \"none\"\n");
    let service = catalog.start(&database).service().await;
    ends_no_statement_of_a_writer(&service, &database, json!({ "datasets": ["parts"] }), ["one", "parts"]).await;
}

/// The transaction that reindexes may wait for another table of the job. So the reader doesn't wait for the index.
#[tokio::test]
async fn a_job_does_not_wait_for_an_index_that_is_rebuilt() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).with("MAX_ATTEMPTS", 1).service().await;
    let tx = database.open("reindex index beta_pkey").await;
    let failed = export_all(&service, "full", json!({ "datasets": TABLES })).await;
    tx.rollback().await.unwrap();
    assert_eq!((&failed["error"]["code"], &failed["error"]["dataset"]), (&json!("source_unavailable"), &json!("beta")));
    let completed = export_all(&service, "full", json!({ "datasets": TABLES })).await;
    assert_eq!(completed["status"], "completed", "{completed}");
}

#[tokio::test]
async fn a_dataset_that_cannot_go_on_fails_its_job_and_moves_no_position() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    export_all(&service, "full", json!({ "datasets": "*" })).await;
    let positions = "select string_agg(concat_ws(' ', dataset, version, live_snapshot), ',' order by dataset)
                     from watermarks";
    let before: String = database.one(positions).await;
    let files = service.files().len();
    database.run("update alpha set n = 1 where k = 1; truncate beta; update gamma set n = 1 where k = 1").await;
    let failed = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    let error = &failed["error"];
    assert_eq!([&failed["status"], &error["code"], &error["dataset"]], ["failed", "full_export_needed", "beta"]);
    assert_eq!(of_exports(&failed, "continuity"), json!([null, "truncated", null]));
    assert_eq!(database.one::<i64>("select count(*) from exports where status = 'failed'").await, 3);
    assert_eq!(database.one::<String>(positions).await, before);
    assert_eq!(service.files().len(), files, "no file and no hidden file is left");
}

#[tokio::test]
async fn a_retry_of_a_job_of_several_datasets_is_one_job() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    export_all(&service, "full", json!({ "datasets": "*" })).await;
    database.run("update alpha set n = 1 where k = 1; truncate beta; update gamma set n = 1 where k = 1").await;
    let failed = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    // A full export of its own heals the dataset.
    export(&service, "full", "beta", "a").await;
    let retry = async |job: &Value| post(&service, &format!("/exports/{}/retry", id(job)), None, &json!({})).await;
    let answer = retry(&failed).await;
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let submitted: Value = answer.json().await.unwrap();
    assert_eq!(location, format!("/exports/{}", id(&submitted)));
    assert_eq!((&submitted["status"], of_exports(&submitted, "dataset")), (&json!("pending"), json!(TABLES)));
    let retried = service.get(&format!("{location}?wait=60")).await;
    assert_eq!((&retried["status"], &retried["retryOf"]), (&json!("completed"), &failed["jobId"]), "{retried}");
    assert_eq!(of_exports(&retried, "rowsExported"), json!([1, 0, 1]));
    assert_eq!(database.one::<i64>("select count(*) from cdc_export.jobs").await, 4);
    assert_eq!(refusal(retry(&retried).await).await, (409, "not_failed".to_owned()));
}

#[tokio::test]
async fn jobs_that_share_a_lane_run_in_the_order_of_their_requests_and_others_pass_them() {
    let (database, catalog) = tables().await;
    let start = catalog.start(&database).with("WORKERS", 3).with("FAILPOINTS", "worker.opened=hold");
    let hold = start.hold("worker.opened");
    let service = start.service().await;
    let first = submit(&service, "full", json!({ "datasets": ["alpha", "beta"] })).await;
    hold.reached().await;
    // The lane of beta is busy. That of gamma is idle, and has the second job before the third one.
    let second = submit(&service, "full", json!({ "datasets": ["gamma", "beta"] })).await;
    let third = submit(&service, "full", json!({ "dataset": "gamma" })).await;
    let free = ended(&service, "/exports/full", Some("b"), json!({ "datasets": "*" })).await;
    assert_eq!(free["status"], "completed", "{free}");
    for waiting in [&second, &third] {
        assert_eq!(service.job(id(waiting)).await["status"], "pending");
    }
    hold.release().await;
    let first = service.completes(id(&first)).await;
    let second = service.completes(id(&second)).await;
    let third = service.completes(id(&third)).await;
    assert_eq!(of_exports(&first, "number"), json!([1, 1]));
    assert_eq!((of_exports(&second, "number"), &third["number"]), (json!([2, 1]), &json!(2)));
    for (before, after) in [(&first, &second), (&second, &third)] {
        assert!(before["finishedAt"].as_str() <= after["startedAt"].as_str(), "{before} {after}");
    }
}

#[tokio::test]
async fn a_job_survives_a_kill_at_each_failpoint_of_its_attempt() {
    let (database, catalog) = tables().await;
    let start = || catalog.start(&database).with("MANIFESTS", "on").with("LEASE_SECONDS", 1);
    let heir = start().service().await;
    export_all(&heir, "full", json!({ "datasets": "*" })).await;
    let target = Database::empty().await;
    let (to, from) = (target.url(), heir.output().to_str().unwrap());
    let call = ["apply", "--consumer", "a", "--to", &to, "--from", from];
    let call = [&call[..], &TABLES.map(|table| ["--dataset", table]).concat()].concat();
    silent(far(&call).output().await);
    let places = [
        "worker.claimed",
        "worker.opened",
        "sink.fsync",
        "worker.staged",
        "worker.extended",
        "worker.commit",
        "worker.committed",
        "publisher.named",
        "sink.manifest.renamed",
    ];
    for (round, place) in places.into_iter().enumerate() {
        // One dataset has no changes.
        database.run(&format!("update alpha set n = n - 1 where k = {}; update gamma set n = n + 1", round + 1)).await;
        heir.signal(nix::sys::signal::Signal::SIGSTOP);
        let mut doomed = start().sharing_output(&heir).with("FAILPOINTS", format!("{place}=kill")).service().await;
        let job = killed_by_a_job(&mut doomed, &database, "delta", json!({ "datasets": "*", "skipEmpty": true })).await;
        heir.signal(nix::sys::signal::Signal::SIGCONT);
        let job = heir.completes(&job).await;
        assert_eq!(of_exports(&job, "skipped"), json!([false, true, false]), "{place}");
        // A folder is applied only if it has the manifests of all exports of the job.
        assert_eq!(silent(far(&call).output().await).lines().count(), 2, "{place}");
        for table in TABLES {
            assert_eq!(rows(&target, table).await, rows(&database, table).await, "{table} after {place}");
        }
    }
    let hidden = || async { heir.files().iter().all(|name| !name.starts_with('.')).then_some(()) };
    eventually("the hidden files are swept", hidden).await;
    manifests::is_whole(heir.output(), &[]).await;
}

#[tokio::test]
async fn an_idempotency_key_of_a_job_stands_for_its_request() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let send = async |export_type: &str, body: Value, more: &[(&str, &str)]| {
        let headers = [&[("X-Consumer-ID", "a"), ("Idempotency-Key", "k")], more].concat();
        service.post(&format!("/exports/{export_type}"), &headers, &body).await
    };
    let first: Value = send("full", json!({ "datasets": "*" }), &[]).await.json().await.unwrap();
    service.ended(id(&first)).await;
    let repeated: Value = send("full", json!({ "datasets": "*" }), &[]).await.json().await.unwrap();
    assert_eq!((id(&repeated), &repeated["exports"]), (id(&first), &first["exports"]));
    for (export_type, body) in [
        ("delta", json!({ "datasets": "*" })),
        ("full", json!({ "datasets": TABLES })),
        ("full", json!({ "dataset": "alpha" })),
    ] {
        assert_eq!(refusal(send(export_type, body, &[]).await).await, (422, "idempotency_key_reused".to_owned()));
    }
    // A key for some of the datasets reveals nothing of the others.
    let alpha = keys::bearer(&catalog, &database, &["alpha"]).await;
    for body in [json!({ "datasets": "*" }), json!({ "dataset": "alpha" })] {
        let answer: Value = send("full", body, &[("Authorization", &alpha)]).await.json().await.unwrap();
        assert_eq!(answer["code"], "idempotency_key_reused", "{answer}");
        assert!(!answer.to_string().contains("beta"), "{answer}");
    }
}

#[tokio::test]
async fn the_export_that_was_loaded_last_is_checked_for_all_datasets_or_none() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let loaded = &full["jobId"];
    let body = |alpha: &Value| json!({ "datasets": "*", "after": { "alpha": alpha, "beta": loaded, "gamma": loaded } });
    let stale = post(&service, "/exports/delta", Some("a"), &body(&Value::Null)).await;
    let stale: Value = stale.json().await.unwrap();
    assert_eq!((&stale["code"], stale["jobs"].as_array().unwrap().len()), (&json!("out_of_step"), 1), "{stale}");
    assert_eq!((&stale["jobs"][0]["jobId"], &stale["jobs"][0]["dataset"]), (loaded, &json!("alpha")), "{stale}");
    assert!(stale["detail"].as_str().unwrap().starts_with("alpha: "), "{stale}");
    assert!(!database.one::<bool>("select exists (select from exports where export_type = 'delta')").await);
    let next = export_all(&service, "delta", body(loaded)).await;
    assert_eq!(next["status"], "completed", "{next}");
}

#[tokio::test]
async fn a_star_leaves_out_what_is_not_ready_and_says_so() {
    let (database, catalog) = tables().await;
    ends(catalog.command(&database, &["untrack", "beta"]).await, 0, "");
    let service = catalog.start(&database).service().await;
    let submitted = submit(&service, "delta", json!({ "datasets": "*" })).await;
    assert_eq!(submitted["leftOut"], json!([{ "dataset": "beta", "reason": "not_tracked" }]));
    let done = service.completes(id(&submitted)).await;
    assert_eq!((&done["leftOut"], of_exports(&done, "dataset")), (&submitted["leftOut"], json!(["alpha", "gamma"])));
    let named = post(&service, "/exports/delta", Some("a"), &json!({ "datasets": TABLES })).await;
    assert_eq!(refusal(named).await, (409, "not_tracked".to_owned()));
    catalog.command(&database, &["untrack", "--all"]).await;
    let none = post(&service, "/exports/delta", Some("a"), &json!({ "datasets": "*" })).await;
    assert_eq!(refusal(none).await, (409, "nothing_ready".to_owned()));
}

#[tokio::test]
async fn a_job_that_waits_for_a_dataset_which_is_gone_ends_after_a_while() {
    let (database, catalog) = tables().await;
    let service =
        catalog.start(&database).with("FAILPOINTS", "reload.tables=time:200,reload.file=time:200").service().await;
    // The lane is busy with a job of another destination, which is alive.
    let hold = "with held as (
                  insert into cdc_export.jobs
                    (id, consumer_id, export_type, format, open_exports, max_attempts, run_at, turn)
                  values (gen_random_uuid(), 'a', 'full', 'unknown', 1, 1, 'infinity', now()) returning id)
                insert into cdc_export.exports (job, dataset, consumer_id, lane_sequence, export_type, output_filename)
                select id, 'alpha', 'a', 0, 'full', 'held.csv' from held";
    database.run(hold).await;
    let waiting = submit(&service, "full", json!({ "datasets": "*" })).await;
    assert_eq!(post(&service, "/exports/full", Some("b"), &json!({ "dataset": "alpha" })).await.status(), 202);
    let other = Catalog::of("[[dataset]]\nname = \"alpha\"\ntable = \"alpha\"\n");
    other.start(&database).service().await.stop().await;
    // Not the process that still has them.
    let recorded = "select min(seen_at) > now() - interval '1 minute' from cdc_export.datasets";
    until("its datasets are recorded again", async || database.one::<bool>(recorded).await).await;
    service.stop().await;
    let age = |table: &str, column: &str| format!("update {table} set {column} = {column} - interval '11 minutes'");
    database.run(&age("cdc_export.jobs", "created_at")).await;
    let still = other.start(&database).service().await;
    assert_eq!(still.job(id(&waiting)).await["status"], "pending", "another process had the datasets a moment ago");
    still.stop().await;
    database.run(&age("cdc_export.datasets", "seen_at")).await;
    let last = other.start(&database).service().await;
    let failed = last.ended(id(&waiting)).await;
    assert_eq!([&failed["status"], &failed["error"]["code"]], ["failed", "dataset_unknown"], "{failed}");
    assert!(["beta", "gamma"].iter().any(|gone| failed["error"]["dataset"] == *gone), "{failed}");
}

#[tokio::test]
async fn bad_input_is_refused_with_its_member() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let many: Vec<_> = (0..1_001).map(|n| format!("d{n}")).collect();
    for (body, code, field) in [
        (json!({ "datasets": [] }), "member_invalid", "datasets"),
        (json!({ "datasets": many }), "member_invalid", "datasets"),
        (json!({ "datasets": ["alpha", "beta", "alpha"] }), "member_invalid", "datasets[2]"),
        (json!({ "datasets": ["alpha", "delta"] }), "member_invalid", "datasets"),
        (json!({ "datasets": "alpha" }), "member_invalid", "datasets"),
        (json!({ "datasets": { "alpha": 1 } }), "member_invalid", "datasets"),
        (json!({ "datasets": null }), "member_invalid", "datasets"),
        (json!({ "datasets": ["alpha"], "dataset": "alpha" }), "member_invalid", "datasets"),
        (json!({ "datasets": ["alpha"], "after": null }), "member_invalid", "after"),
        (json!({ "datasets": ["alpha"], "after": { "beta": null } }), "member_invalid", "after"),
        (json!({ "datasets": ["alpha"], "afterSha256": "0".repeat(64) }), "member_invalid", "afterSha256"),
        (json!({ "dataset": "alpha", "after": { "alpha": null } }), "member_invalid", "after"),
    ] {
        let answer: Value = post(&service, "/exports/delta", Some("a"), &body).await.json().await.unwrap();
        assert_eq!((&answer["code"], &answer["field"]), (&code.into(), &field.into()), "{body} {answer}");
    }
    let all = json!({ "datasets": "*", "after": { "delta": null } });
    let answer: Value = post(&service, "/exports/delta", Some("a"), &all).await.json().await.unwrap();
    assert_eq!((&answer["code"], &answer["field"]), (&json!("member_invalid"), &json!("after")), "{answer}");
    let ad_hoc = post(&service, "/exports", None, &json!({ "datasets": "*" })).await;
    assert_eq!(refusal(ad_hoc).await, (400, "member_unknown".to_owned()));
    // There are no calls for batches.
    for (method, call) in [("GET", ""), ("GET", "/x"), ("POST", "/x/cancel"), ("POST", "/x/retry")] {
        service.refuses(method, &format!("/batches{call}"), &[], 404, "not_found").await;
    }
    assert!(!database.one::<bool>("select exists (select from exports)").await);
}

#[tokio::test]
async fn a_job_of_several_datasets_counts_as_one_open_job_and_one_worker() {
    let (database, catalog) = tables().await;
    let start = catalog.start(&database).with("MAX_OPEN_JOBS", 2).with("FAILPOINTS", "worker.opened=hold");
    let hold = start.hold("worker.opened");
    let service = start.service().await;
    let running = submit(&service, "full", json!({ "datasets": "*" })).await;
    hold.reached().await;
    submit(&service, "full", json!({ "datasets": "*" })).await;
    let full = post(&service, "/exports/full", Some("b"), &json!({ "dataset": "alpha" })).await;
    assert_eq!(refusal(full).await, (429, "too_many_open_jobs".to_owned()));
    let [started] = service.events("export_started").try_into().unwrap();
    assert_eq!((&started["jobId"], &started["datasets"]), (&running["jobId"], &json!(3)), "{started}");
}

#[tokio::test]
async fn a_list_has_each_job_once_in_the_form_of_its_request() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let mut jobs = Vec::new();
    for table in TABLES {
        jobs.push(export_all(&service, "full", json!({ "datasets": TABLES })).await);
        jobs.push(export(&service, "full", table, "a").await);
    }
    database.run("truncate beta").await;
    jobs.push(export_all(&service, "delta", json!({ "datasets": ["alpha", "beta"] })).await);
    jobs.reverse();
    for limit in [1, 2, 3, 200] {
        assert_eq!(service.pages("/exports", &[], limit).await, jobs, "{limit}");
    }
    for (filter, expected) in [
        ("dataset=beta&status=completed", vec![&jobs[2], &jobs[3], &jobs[4], &jobs[6]]),
        ("dataset=alpha&status=failed", vec![&jobs[0]]),
        ("dataset=gamma&status=failed", vec![]),
    ] {
        let listed = service.pages(&format!("/exports?{filter}"), &[], 2).await;
        assert_eq!(listed.iter().collect::<Vec<_>>(), expected, "{filter}");
    }
    let lane = format!("/exports?consumer=a&dataset=alpha&after={}", id(&jobs[6]));
    let lane = service.pages(&lane, &[], 2).await;
    let lane: Vec<_> = lane.iter().map(|export| json!([export["jobId"], export["number"]])).collect();
    assert_eq!(lane, [(5, 2), (4, 3), (2, 4)].map(|(at, number)| json!([jobs[at]["jobId"], number])));
}

#[tokio::test]
async fn a_pull_of_several_datasets_asks_for_one_job_without_those_that_fail() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).with("CELL_MAX_BYTES", 65536).service().await;
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().display().to_string();
    let pull = async || {
        let arguments = ["pull", "--server", &service.address, "--consumer", "a", "--all-datasets"];
        let arguments = arguments.iter().chain(&["--into", &into, "--request", "delta"]).copied().collect::<Vec<_>>();
        far(&arguments).output().await
    };
    // The jobs whose requests had datasets, their exports, and all exports.
    let counts = "select count(distinct job) filter (where datasets is not null) || ' '
                    || count(*) filter (where datasets is not null) || ' ' || count(*)
                  from cdc_export.exports join cdc_export.jobs on id = job";
    let others = "update alpha set n = n + 1; update gamma set n = n + 1";
    for (change, expected) in [
        ("select 1", "1 3 3"),
        ("update beta set n = 1 where k = 1", "2 6 6"),
        // The dataset that needs a full export gets one in the job.
        ("truncate beta", "3 9 9"),
        ("insert into beta values (1, 2)", "4 12 12"),
    ] {
        database.run(&format!("{change}; {others}")).await;
        let (code, _, errors) = pull().await;
        assert_eq!((code, &*errors), (0, ""), "{change}");
        assert_eq!(database.one::<String>(counts).await, expected, "{change}");
    }
    // A dataset with a value that is too large fails the job. The others have the next one.
    database.run(&format!("alter table beta add t text; update beta set t = repeat('x', 70000); {others}")).await;
    let (code, printed, errors) = pull().await;
    assert_eq!((code, printed.lines().count()), (1, 2), "{errors}");
    let (left_out, failed) = ("the other 2 datasets are exported without it", "1 of 3 datasets failed: beta");
    assert!(errors.contains("cdc-export: beta: ") && errors.contains(left_out) && errors.contains(failed), "{errors}");
    assert_eq!(database.one::<String>(counts).await, "6 17 18");
}

#[tokio::test]
async fn a_destination_that_goes_fails_a_job_as_a_whole_and_is_said_once() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let held = database.open("lock table alpha in access exclusive mode").await;
    let folder = reachable_folder();
    let into = folder.path().to_str().unwrap();
    let pull = ["pull", "--consumer", "a", "--all-datasets", "--request", "delta", "--into", into];
    let pull = far(&[&pull[..], &["--server", &service.address]].concat());
    let pull = tokio::spawn(async { pull.output().await });
    let running = "select count(*) from exports where status = 'processing'";
    until("the job runs", async || database.one::<i64>(running).await == 3).await;
    std::fs::remove_file(service.output().join(".cdc-export-store")).unwrap();
    held.rollback().await.unwrap();
    let (code, printed, said) = pull.await.unwrap();
    assert_eq!((code, &*printed, said.lines().count()), (1, "", 1), "{said}");
    let errors = "select count(*) || ' ' || string_agg(distinct error_code, ' ') from exports";
    assert_eq!(database.one::<String>(errors).await, "3 output_missing");
}

/// A session without room for a lock fails, even one of a user's own application.
#[tokio::test]
async fn a_job_leaves_half_of_the_room_for_locks_to_others() {
    let mut cluster = Cluster::with(&["max_locks_per_transaction = 10", "max_connections = 25"]).await;
    let database = cluster.database();
    let tables = "create table alpha (k int primary key); create table beta (k int primary key);
                  create table gamma (k int primary key) partition by range (k)";
    database.run(tables).await;
    let partitions = async |from: i32, to: i32| {
        for at in from..to {
            let part = format!("create table gamma_{at} partition of gamma for values from ({at}) to ({at} + 1)");
            database.run(&part).await;
        }
    };
    partitions(0, 100).await;
    let catalog = Catalog::of_tables(&TABLES);
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    partitions(100, 200).await;
    let (_, said) = ends(catalog.command(&database, &["track", "gamma"]).await, 1, "");
    assert!(said.contains("`gamma` needs 201 locks at once"), "{said}");
    let service = catalog.start(&database).service().await;
    let refused = export_all(&service, "full", json!({ "datasets": "*" })).await;
    assert_eq!(refused["error"]["code"], "too_many_locks", "{refused}");
    let detail = refused["error"]["detail"].as_str().unwrap();
    // Three tables and 200 partitions, and once more one partition with its index.
    assert!(
        detail.contains("needs 205 locks at once") && detail.contains("Postgres is sure to have free now"),
        "{detail}"
    );
    let done = export_all(&service, "full", json!({ "datasets": ["alpha", "beta"] })).await;
    assert_eq!(done["status"], "completed", "{done}");
    service.stop().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_job_that_heals_makes_full_exports_where_only_they_go_on() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let started = json!({ "datasets": "*" });
    assert_eq!(export_all(&service, "delta", started.clone()).await["status"], "completed");
    // Two of three tables can't go on by a delta.
    let change = "update alpha set n = n + 1 where k = 1; alter table alpha alter n type bigint;
                  alter table gamma alter n type bigint; update beta set n = 7 where k = 2";
    database.run(change).await;
    let failed = export_all(&service, "delta", started).await;
    assert_eq!([&failed["status"], &failed["error"]["dataset"]], ["failed", "alpha"], "{failed}");

    let healing = json!({ "datasets": "*", "heal": true });
    let healed = export_all(&service, "delta", healing.clone()).await;
    let members = ["status", "heal", "exportType"].map(|member| healed[member].clone());
    assert_eq!(members, [json!("completed"), json!(true), json!("delta")], "{healed}");
    assert_eq!(of_exports(&healed, "exportType"), json!(["full", "delta", "full"]));
    assert_eq!(of_exports(&healed, "rowsExported"), json!([10, 1, 10]));
    for export in healed["exports"].as_array().unwrap() {
        let (name, kind) = (export["outputFilename"].as_str().unwrap(), export["exportType"].as_str().unwrap());
        assert!(name.starts_with(&format!("{kind}_")), "{export}");
    }
    // The attempt that found it out doesn't count.
    assert_eq!((&healed["attempt"], &healed["error"]), (&json!(1), &Value::Null), "{healed}");
    // From there all go on together.
    let again = export_all(&service, "delta", healing).await;
    assert_eq!(again["status"], "completed", "{again}");
    assert_eq!(of_exports(&again, "exportType"), json!(["delta", "delta", "delta"]));

    // A retry has the type that was asked for.
    database.run("alter table alpha alter n type int; alter table beta rename to other").await;
    let body = json!({ "datasets": TABLES, "heal": true });
    let failed = export_all(&service, "delta", body.clone()).await;
    assert_eq!([&failed["status"], &failed["error"]["code"]], ["failed", "table_missing"], "{failed}");
    database.run("alter table other rename to beta").await;
    let retried = ended(&service, &format!("/exports/{}/retry", id(&failed)), None, json!({})).await;
    assert_eq!(retried["status"], "completed", "{retried}");
    assert_eq!(of_exports(&retried, "exportType"), json!(["full", "delta", "delta"]));

    // Nothing could follow a full export of a table whose triggers are off. They are turned off while the job waits.
    let held = database.open("lock table alpha in access exclusive mode").await;
    let waiting = submit(&service, "delta", body).await;
    database.run("alter table beta disable trigger all").await;
    held.rollback().await.unwrap();
    let failed = service.ended(id(&waiting)).await;
    let why = [&failed["status"], &failed["error"]["code"], &failed["error"]["dataset"]];
    assert_eq!(why, ["failed", "full_export_needed", "beta"], "{failed}");

    // A request for one dataset has no `heal`.
    let answer = post(&service, "/exports/delta", Some("a"), &json!({ "dataset": "alpha", "heal": true })).await;
    assert_eq!(answer.status(), 400);
}

#[tokio::test]
async fn a_refused_request_names_the_unknown_dataset_and_the_missing_consumer() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let refused = async |path: &str, consumer: Option<&str>, body: Value| {
        post(&service, path, consumer, &body).await.json::<Value>().await.unwrap()["detail"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let said = refused("/exports/full", Some("a"), json!({ "datasets": ["alpha", "gama"] })).await;
    assert!(said.contains("there is no dataset `gama`; is it `gamma`?"), "{said}");
    let said = refused("/exports", None, json!({ "datasets": ["alpha"] })).await;
    assert_eq!(said, "datasets: only a consumer's export accepts it: send X-Consumer-ID");
}
