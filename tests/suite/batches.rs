//! Batches: exports of several datasets, read at one snapshot and completed together or not at all.

mod manifests;
mod retention;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use sqlx::Row;

use crate::catalog::{Catalog, export, post};
use crate::harness::{
    Csv, Database, Service, connect_options, embedded_settings_with_cluster, ends, eventually, reachable_folder,
    refusal, until,
};

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
    let catalog =
        Catalog::of(&TABLES.map(|name| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\n")).concat());
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    (database, catalog)
}

pub(crate) async fn batch(service: &Service, export_type: &str, body: Value) -> Value {
    let answer = post(service, &format!("/exports/{export_type}"), Some("a"), &body).await;
    let (status, answer) = (answer.status(), answer.json::<Value>().await.unwrap());
    assert_eq!(status, 202, "{body} {answer}");
    answer
}

pub(crate) async fn ended(service: &Service, id: &Value) -> Value {
    let path = format!("/batches/{}?wait=60", id.as_str().unwrap());
    let ended = eventually("the end of the batch", async || {
        let batch: Value = service.ask("GET", &path, &[]).await.json().await.unwrap();
        let is_open = ["pending", "processing"].iter().any(|open| batch["status"] == *open);
        (!is_open).then_some(batch)
    });
    ended.await
}

pub(crate) async fn export_all(service: &Service, export_type: &str, body: Value) -> Value {
    let submitted = batch(service, export_type, body).await;
    ended(service, &submitted["batchId"]).await
}

fn statuses(batch: &Value) -> Vec<&str> {
    batch["jobs"].as_array().unwrap().iter().map(|job| job["status"].as_str().unwrap()).collect()
}

/// A consumer's copy of the tables.
#[derive(Default)]
struct Copies(BTreeMap<String, BTreeMap<i64, i64>>);

impl Copies {
    fn load(&mut self, service: &Service, batch: &Value) {
        for job in batch["jobs"].as_array().unwrap() {
            let copy = self.0.entry(job["dataset"].as_str().unwrap().to_owned()).or_default();
            if job["skipped"] == true {
                continue;
            }
            let csv = Csv::read(&service.path(job));
            let is_delta = csv.header[0] == "operation";
            if job["exportType"] == "full" {
                copy.clear();
            }
            for row in &csv.rows {
                let values = &row[usize::from(is_delta)..];
                let key: i64 = values[0].parse().unwrap();
                match is_delta && row[0] == "DELETE" {
                    true => drop(copy.remove(&key)),
                    false => drop(copy.insert(key, values[1].parse().unwrap())),
                }
            }
        }
    }

    fn sum(&self) -> i64 {
        self.0.values().flat_map(BTreeMap::values).sum()
    }
}

#[tokio::test]
async fn all_members_are_of_one_moment_while_writers_move_between_the_tables() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    for table in TABLES {
        database.run(&format!("create table {table}_moved (k int, n int)")).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let (pool, stop) = (database.pool.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut moves = 0_i64;
                while !stop.load(Ordering::Relaxed) {
                    let (from, to) = (TABLES[(moves as usize + writer) % 3], TABLES[(moves as usize + writer + 1) % 3]);
                    // Two writers never have the same row.
                    let k = moves * 2 % 10 + 1 + writer as i64;
                    // Also by a deletion and an insertion of the row.
                    let statements = format!(
                        "update {from} set n = n - 7 where k = {k};
                         with gone as (delete from {to} where k = {k} returning k, n) insert into {to}_moved select * from gone;
                         insert into {to} select k, n + 7 from {to}_moved where k = {k}; delete from {to}_moved where k = {k}"
                    );
                    // A string of statements is one transaction. A deadlock undoes it.
                    let _ = sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&pool).await;
                    moves += 1;
                }
                moves
            })
        })
        .collect();
    let mut copies = Copies::default();
    copies.load(&service, &export_all(&service, "full", json!({ "datasets": "*" })).await);
    assert_eq!(copies.sum(), 3_000, "the full exports are of one moment");
    for round in 0..15 {
        let batch = export_all(&service, "delta", json!({ "datasets": TABLES, "skipEmpty": true })).await;
        assert_eq!(batch["status"], "completed", "{batch}");
        copies.load(&service, &batch);
        assert_eq!(copies.sum(), 3_000, "round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 0, "the writers wrote");
    }
    copies.load(&service, &export_all(&service, "delta", json!({ "datasets": "*", "skipEmpty": true })).await);
    for table in TABLES {
        let rows =
            sqlx::query(sqlx::AssertSqlSafe(format!("select k, n from {table}"))).fetch_all(&database.pool).await;
        let source: BTreeMap<i64, i64> =
            rows.unwrap().iter().map(|row| (row.get::<i32, _>(0).into(), row.get::<i32, _>(1).into())).collect();
        assert_eq!(copies.0[table], source, "{table}");
    }
}

/// Checks that an export ends no statement of a writer that has one table and wants another one of the export's.
///
/// Once a session has waited for `deadlock_timeout`, one second, Postgres looks for a deadlock and ends the session's
/// statement if there is one. The writer begins to wait when Postgres has looked for the export's session already.
async fn ends_no_statement_of_a_writer(service: &Service, database: &Database, body: Value, [held, wanted]: [&str; 2]) {
    let mut writer = database.pool.begin().await.unwrap();
    let lock = |table| sqlx::raw_sql(sqlx::AssertSqlSafe(format!("lock table only {table}")));
    lock(held).execute(&mut *writer).await.unwrap();
    let submitted = batch(service, "full", body).await;
    let waits = format!("select exists (select from pg_locks where not granted and relation = '{held}'::regclass)");
    until("the export waits", async || database.one::<bool>(&waits).await).await;
    sqlx::raw_sql("select pg_sleep(1.2)").execute(&mut *writer).await.unwrap();
    lock(wanted).execute(&mut *writer).await.expect("no deadlock");
    writer.commit().await.unwrap();
    let ended = ended(service, &submitted["batchId"]).await;
    assert_eq!((&ended["status"], &ended["jobs"][0]["attempt"]), (&json!("completed"), &json!(1)), "{ended}");
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
    let parts = "create table parts (k int primary key) partition by list (k); create table one partition of parts for values in (1)";
    database.run(parts).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"parts\"\ntable = \"parts\"\ncapture = \"none\"\n");
    let service = catalog.start(&database).service().await;
    ends_no_statement_of_a_writer(&service, &database, json!({ "datasets": ["parts"] }), ["one", "parts"]).await;
}

/// The transaction that reindexes may wait for another table of the batch. So the reader doesn't wait for the index.
#[tokio::test]
async fn a_batch_does_not_wait_for_an_index_that_is_rebuilt() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).with("MAX_ATTEMPTS", 1).service().await;
    let tx = database.open("reindex index beta_pkey").await;
    let failed = export_all(&service, "full", json!({ "datasets": TABLES })).await;
    tx.rollback().await.unwrap();
    assert_eq!((&failed["error"]["code"], &failed["error"]["member"]), (&json!("source_unavailable"), &json!("beta")));
    let completed = export_all(&service, "full", json!({ "datasets": TABLES })).await;
    assert_eq!(completed["status"], "completed", "{completed}");
}

#[tokio::test]
async fn a_member_that_cannot_go_on_fails_the_batch_and_moves_no_position() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    export_all(&service, "full", json!({ "datasets": "*" })).await;
    let positions = "select string_agg(dataset || ' ' || version || ' ' || live_snapshot::text, ',' order by dataset) from watermarks";
    let before: String = database.one(positions).await;
    let files = service.files().len();
    database.run("update alpha set n = 1 where k = 1; truncate beta; update gamma set n = 1 where k = 1").await;
    let failed = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    assert_eq!((&failed["status"], statuses(&failed)), (&json!("failed"), vec!["failed"; 3]), "{failed}");
    assert_eq!((&failed["error"]["code"], &failed["error"]["member"]), (&json!("full_export_needed"), &json!("beta")));
    assert_eq!(failed["jobs"][0]["error"]["code"], "batch_member_failed");
    let detail = failed["jobs"][0]["error"]["detail"].as_str().unwrap();
    assert!(!detail.contains("beta"), "a key for the member alone may not learn of the others: {detail}");
    assert_eq!(database.one::<String>(positions).await, before);
    assert_eq!(service.files().len(), files, "no file and no hidden file is left");

    // The member is healed by a full export of its own. The batch can then be retried.
    export(&service, "full", "beta", "a").await;
    let path = format!("/batches/{}/retry", failed["batchId"].as_str().unwrap());
    let retried: Value = post(&service, &path, None, &json!({})).await.json().await.unwrap();
    let retried = ended(&service, &retried["batchId"]).await;
    assert_eq!((&retried["status"], &retried["retryOf"]), (&json!("completed"), &failed["batchId"]), "{retried}");
    assert_eq!(retried["jobs"][0]["retryOf"], failed["jobs"][0]["jobId"]);
    let rows: Vec<_> = retried["jobs"].as_array().unwrap().iter().map(|job| job["rowsExported"].clone()).collect();
    assert_eq!(rows, [1, 0, 1]);
    let path = format!("/batches/{}/retry", retried["batchId"].as_str().unwrap());
    let again = post(&service, &path, None, &json!({})).await;
    assert_eq!(refusal(again).await, (409, "not_failed".to_owned()));
}

#[tokio::test]
async fn a_batch_keeps_its_place_in_each_of_its_lanes() {
    let (database, catalog) = tables().await;
    let start = catalog.start(&database).with("WORKERS", 3).with("FAILPOINTS", "worker.opened=hold");
    let hold = start.hold("worker.opened");
    let service = start.service().await;
    let submit = async |dataset: &str| {
        let answer = post(&service, "/exports/full", Some("a"), &json!({ "dataset": dataset })).await;
        answer.json::<Value>().await.unwrap()["jobId"].as_str().unwrap().to_owned()
    };
    let first = submit("alpha").await;
    hold.reached().await;
    let of_two = batch(&service, "full", json!({ "datasets": ["beta", "alpha"] })).await;
    let behind = submit("beta").await;
    let overlapping = batch(&service, "full", json!({ "datasets": ["gamma", "beta"] })).await;
    let free = post(&service, "/exports/full", Some("b"), &json!({ "dataset": "beta" })).await;
    assert_eq!(free.status(), 202);
    for id in [&behind, of_two["jobs"][0]["jobId"].as_str().unwrap(), of_two["jobs"][1]["jobId"].as_str().unwrap()] {
        assert_eq!(service.job(id).await["status"], "pending", "the lane of alpha is busy");
    }
    hold.release().await;
    for id in [&of_two["batchId"], &overlapping["batchId"]] {
        // Each attempt is held again.
        let done = AtomicBool::new(false);
        let release = async {
            while !done.load(Ordering::Relaxed) {
                if service.events("batch_committed").len() < 9 {
                    service.release("worker.opened").await;
                }
            }
        };
        let batch = tokio::select! { batch = ended(&service, id) => batch, () = release => unreachable!() };
        assert_eq!(batch["status"], "completed", "{batch}");
    }
    let number = async |id: &str| service.ended(id).await["number"].clone();
    assert_eq!(number(&first).await, 1);
    let of_two = ended(&service, &of_two["batchId"]).await;
    assert_eq!((&of_two["jobs"][0]["dataset"], &of_two["jobs"][0]["number"]), (&json!("alpha"), &json!(2)));
    assert_eq!((&of_two["jobs"][1]["dataset"], &of_two["jobs"][1]["number"]), (&json!("beta"), &json!(1)));
    assert_eq!(number(&behind).await, 2);
    let overlapping = ended(&service, &overlapping["batchId"]).await;
    assert_eq!((&overlapping["jobs"][0]["number"], &overlapping["jobs"][1]["number"]), (&json!(3), &json!(1)));
}

#[tokio::test]
async fn a_batch_is_cancelled_as_a_whole() {
    let (database, catalog) = tables().await;
    let start = catalog.start(&database).with("FAILPOINTS", "worker.opened=hold");
    let hold = start.hold("worker.opened");
    let service = start.service().await;
    let running = batch(&service, "full", json!({ "datasets": "*" })).await;
    let waiting = batch(&service, "full", json!({ "datasets": "*" })).await;
    hold.reached().await;
    for batch in [&running, &waiting] {
        for at in 0..3 {
            let id = batch["jobs"][at]["jobId"].as_str().unwrap();
            for call in ["cancel", "retry"] {
                let answer = post(&service, &format!("/exports/{id}/{call}"), None, &json!({})).await;
                assert_eq!(refusal(answer).await, (409, "batch_member".to_owned()), "{call}");
            }
        }
        let path = format!("/batches/{}/cancel", batch["batchId"].as_str().unwrap());
        assert_eq!(post(&service, &path, None, &json!({})).await.status(), 202);
    }
    for (batch, is_waiting) in [(&waiting, true), (&running, false)] {
        if !is_waiting {
            service.release("worker.opened").await;
        }
        let cancelled = ended(&service, &batch["batchId"]).await;
        assert_eq!((&cancelled["status"], statuses(&cancelled)), (&json!("cancelled"), vec!["cancelled"; 3]));
        let path = format!("/batches/{}/cancel", batch["batchId"].as_str().unwrap());
        assert_eq!(post(&service, &path, None, &json!({})).await.status(), 200, "it was cancelled before");
    }
    assert!(!database.one::<bool>("select exists (select from watermarks)").await);
    assert_eq!(service.files(), Vec::<String>::new());
}

#[tokio::test]
async fn a_batch_survives_a_kill_at_each_failpoint_of_its_attempt() {
    let (database, catalog) = tables().await;
    let start = || catalog.start(&database).with("LEASE_SECONDS", 1);
    let heir = start().service().await;
    let mut copies = Copies::default();
    copies.load(&heir, &export_all(&heir, "full", json!({ "datasets": "*" })).await);
    let places = [
        "worker.claimed",
        "worker.opened",
        "sink.fsync",
        "worker.staged",
        "worker.extended",
        "worker.commit",
        "worker.committed",
        "publisher.named",
    ];
    for (round, place) in places.into_iter().enumerate() {
        // One member has nothing to tell.
        database.run(&format!("update alpha set n = n - 1 where k = {}; update gamma set n = n + 1", round + 1)).await;
        heir.signal(nix::sys::signal::Signal::SIGSTOP);
        let mut doomed = start().sharing_output(&heir).with("FAILPOINTS", format!("{place}=kill")).service().await;
        let submitted = batch(&doomed, "delta", json!({ "datasets": "*", "skipEmpty": true })).await;
        doomed.dies().await;
        heir.signal(nix::sys::signal::Signal::SIGCONT);
        let batch = ended(&heir, &submitted["batchId"]).await;
        assert_eq!(batch["status"], "completed", "{place}: {batch}");
        let skipped: Vec<_> = batch["jobs"].as_array().unwrap().iter().map(|job| job["skipped"] == true).collect();
        assert_eq!(skipped, [false, true, false], "{place}");
        copies.load(&heir, &batch);
        for table in TABLES {
            let sum = format!("select sum(n) from {table}");
            assert_eq!(copies.0[table].values().sum::<i64>(), database.one::<i64>(&sum).await, "{table} after {place}");
        }
    }
    let hidden = || async { heir.files().iter().all(|name| !name.starts_with('.')).then_some(()) };
    eventually("the hidden files are swept", hidden).await;
}

#[tokio::test]
async fn a_key_of_a_batch_stands_for_its_request() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let send = async |export_type: &str, body: Value| {
        service
            .post(&format!("/exports/{export_type}"), &[("X-Consumer-ID", "a"), ("Idempotency-Key", "k")], &body)
            .await
    };
    let first: Value = send("full", json!({ "datasets": "*" })).await.json().await.unwrap();
    ended(&service, &first["batchId"]).await;
    let repeated: Value = send("full", json!({ "datasets": "*" })).await.json().await.unwrap();
    assert_eq!(repeated["batchId"], first["batchId"]);
    let ids =
        |batch: &Value| batch["jobs"].as_array().unwrap().iter().map(|job| job["jobId"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&repeated), ids(&first));
    // A key for some of the datasets learns nothing of the others.
    let (code, printed, errors) = catalog
        .command(
            &database,
            &["keys", "create", "--json", "--name", "one", "--dataset", "alpha", "--scope", "export:write"],
        )
        .await;
    assert_eq!(code, 0, "{errors}");
    let narrow = serde_json::from_str::<Value>(&printed).unwrap()["key"].as_str().unwrap().to_owned();
    let walled = catalog.start(&database).with("AUTH", "keys").service().await;
    for body in [json!({ "datasets": "*" }), json!({ "dataset": "alpha" })] {
        let request = walled.client.post(format!("{}/exports/full", walled.address)).bearer_auth(&narrow);
        let request = request.header("X-Consumer-ID", "a").header("Idempotency-Key", "k").json(&body);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(answer["code"], "idempotency_key_reused", "{answer}");
        assert!(!answer.to_string().contains("beta"), "{answer}");
    }
    walled.stop().await;
    for (export_type, body) in [
        ("delta", json!({ "datasets": "*" })),
        ("full", json!({ "datasets": TABLES })),
        ("full", json!({ "dataset": "alpha" })),
    ] {
        assert_eq!(refusal(send(export_type, body).await).await, (422, "idempotency_key_reused".to_owned()));
    }
}

/// Makes a key for one dataset, as a header's value.
async fn key_for(catalog: &Catalog, database: &Database, dataset: &str) -> String {
    let arguments = ["keys", "create", "--json", "--name", dataset, "--dataset", dataset];
    let (printed, _) = ends(catalog.command(database, &arguments).await, 0, "");
    format!("Bearer {}", serde_json::from_str::<Value>(&printed).unwrap()["key"].as_str().unwrap())
}

#[tokio::test]
async fn a_batch_stays_hidden_when_its_hidden_member_is_removed() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let body = json!({ "datasets": ["alpha", "beta"] });
    let full = export_all(&service, "full", body.clone()).await;
    let lock = database.open("lock table beta in access exclusive mode").await;
    let open = batch(&service, "full", body).await;
    let id = |batch: &Value| batch["batchId"].as_str().unwrap().to_owned();
    let cancelled = service.call("POST", &format!("/batches/{}/cancel", id(&open)), &[]).await;
    assert_eq!(cancelled.status(), 202);
    lock.rollback().await.unwrap();
    assert_eq!(ended(&service, &open["batchId"]).await["status"], "cancelled");
    let alpha = key_for(&catalog, &database, "alpha").await;
    let calls = [("GET", ""), ("GET", "?wait=1"), ("POST", "/cancel"), ("POST", "/retry")];
    for member in ["kept", "removed"] {
        for batch in [&full, &open] {
            for (method, call) in calls {
                let path = format!("/batches/{}{call}", id(batch));
                let answer = service.call(method, &path, &[("Authorization", &alpha)]).await;
                assert_eq!(refusal(answer).await, (404, "not_found".to_owned()), "{method} {path}, {member}");
            }
        }
        database.run("delete from exports where dataset = 'beta'").await;
    }
    assert_eq!(service.call("GET", &format!("/batches/{}", id(&full)), &[]).await.status(), 200);
}

#[tokio::test]
async fn a_consumer_of_hidden_datasets_is_as_new_as_an_unknown_one() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    export_all(&service, "full", json!({ "datasets": ["alpha"] })).await;
    let gamma = key_for(&catalog, &database, "gamma").await;
    for consumer in ["a", "unknown"] {
        let headers = [("X-Consumer-ID", consumer), ("Authorization", &*gamma)];
        let answer: Value = service.post("/exports/full", &headers, &json!({})).await.json().await.unwrap();
        assert_eq!(answer["newConsumer"], true, "{consumer}: {answer}");
    }
    let beta = batch(&service, "full", json!({ "datasets": ["beta"] })).await;
    assert!(beta.get("newConsumer").is_none(), "{beta}");
}

#[tokio::test]
async fn the_export_that_was_loaded_last_is_checked_for_all_members_or_none() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let after = |at: usize| full["jobs"][at]["jobId"].clone();
    let body =
        |alpha: Value| json!({ "datasets": "*", "after": { "alpha": alpha, "beta": after(1), "gamma": after(2) } });
    let stale = post(&service, "/exports/delta", Some("a"), &body(Value::Null)).await;
    let stale: Value = stale.json().await.unwrap();
    assert_eq!((&stale["code"], &stale["jobs"][0]["jobId"]), (&json!("out_of_step"), &after(0)), "{stale}");
    assert!(stale["detail"].as_str().unwrap().starts_with("alpha: "), "{stale}");
    assert!(!database.one::<bool>("select exists (select from exports where export_type = 'delta')").await);
    let next = export_all(&service, "delta", body(after(0))).await;
    assert_eq!(next["status"], "completed", "{next}");
}

#[tokio::test]
async fn a_star_leaves_out_what_is_not_ready_and_says_so() {
    let (database, catalog) = tables().await;
    ends(catalog.command(&database, &["untrack", "beta"]).await, 0, "");
    let service = catalog.start(&database).service().await;
    let submitted = batch(&service, "delta", json!({ "datasets": "*" })).await;
    assert_eq!(submitted["leftOut"], json!([{ "dataset": "beta", "reason": "not_tracked" }]));
    let done = ended(&service, &submitted["batchId"]).await;
    assert_eq!((&done["leftOut"], statuses(&done)), (&submitted["leftOut"], vec!["completed"; 2]));
    let named = post(&service, "/exports/delta", Some("a"), &json!({ "datasets": TABLES })).await;
    assert_eq!(refusal(named).await, (409, "not_tracked".to_owned()));
    catalog.command(&database, &["untrack", "--all"]).await;
    let none = post(&service, "/exports/delta", Some("a"), &json!({ "datasets": "*" })).await;
    assert_eq!(refusal(none).await, (409, "nothing_ready".to_owned()));
}

#[tokio::test]
async fn a_batch_that_waits_for_a_dataset_which_is_gone_ends_after_a_while() {
    let (database, catalog) = tables().await;
    let service =
        catalog.start(&database).with("FAILPOINTS", "reload.tables=time:200,reload.file=time:200").service().await;
    // Its lane is busy: the job of another destination, which is alive.
    let hold = "insert into exports (id, consumer_id, dataset, lane_sequence, export_type, format, max_attempts,
                  output_filename, run_at)
                values (gen_random_uuid(), 'a', 'alpha', 0, 'full', 'unknown', 1, 'held.csv', 'infinity')";
    database.run(hold).await;
    let waiting = batch(&service, "full", json!({ "datasets": "*" })).await;
    let alone = post(&service, "/exports/full", Some("b"), &json!({ "dataset": "alpha" })).await;
    assert_eq!(alone.status(), 202);
    let other = Catalog::of("[[dataset]]\nname = \"alpha\"\ntable = \"alpha\"\n");
    other.start(&database).service().await.stop().await;
    // Not the process that still has them.
    let recorded = "select min(seen_at) > now() - interval '1 minute' from cdc_export.datasets";
    until("its datasets are recorded again", async || database.one::<bool>(recorded).await).await;
    service.stop().await;
    let age = |table: &str, column: &str| format!("update {table} set {column} = {column} - interval '11 minutes'");
    database.run(&age("exports", "created_at")).await;
    let still = other.start(&database).service().await;
    let status = async || {
        let of_batch = format!("/batches/{}", waiting["batchId"].as_str().unwrap());
        still.ask("GET", &of_batch, &[]).await.json::<Value>().await.unwrap()["status"].clone()
    };
    assert_eq!(status().await, "pending", "another process had the datasets a moment ago");
    still.stop().await;
    database.run(&age("cdc_export.datasets", "seen_at")).await;
    let last = other.start(&database).service().await;
    let failed = ended(&last, &waiting["batchId"]).await;
    let codes: Vec<_> = failed["jobs"].as_array().unwrap().iter().map(|job| job["error"]["code"].clone()).collect();
    assert_eq!(codes, ["batch_member_failed", "dataset_unknown", "dataset_unknown"], "{failed}");
    assert_eq!(failed["error"]["code"], "dataset_unknown");
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
    for call in ["", "/cancel", "/retry"] {
        let method = if call.is_empty() { "GET" } else { "POST" };
        for id in ["01900000-0000-7000-8000-000000000000", "x"] {
            let answer = service.call(method, &format!("/batches/{id}{call}"), &[]).await;
            assert_eq!(refusal(answer).await, (404, "not_found".to_owned()), "{method} {id}{call}");
        }
    }
    assert!(!database.one::<bool>("select exists (select from exports)").await);
}

#[tokio::test]
async fn a_batch_counts_as_one_open_job_and_one_worker() {
    let (database, catalog) = tables().await;
    let start = catalog.start(&database).with("MAX_OPEN_JOBS", 2).with("FAILPOINTS", "worker.opened=hold");
    let hold = start.hold("worker.opened");
    let service = start.service().await;
    batch(&service, "full", json!({ "datasets": "*" })).await;
    hold.reached().await;
    batch(&service, "full", json!({ "datasets": "*" })).await;
    let full = post(&service, "/exports/full", Some("b"), &json!({ "dataset": "alpha" })).await;
    assert_eq!(refusal(full).await, (429, "too_many_open_jobs".to_owned()));
    assert_eq!(service.events("batch_started").len(), 1);
}

#[tokio::test]
async fn a_pull_of_several_datasets_asks_for_one_batch_without_those_that_fail() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).with("CELL_MAX_BYTES", 65536).service().await;
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().display().to_string();
    let pull = async || {
        let arguments = ["pull", "--server", &service.address, "--consumer", "a", "--all-datasets"];
        let arguments = arguments.iter().chain(&["--into", &into, "--request", "delta"]).copied().collect::<Vec<_>>();
        crate::harness::far(&arguments).output().await
    };
    let batches = "select count(distinct batch_id) || ' ' || count(batch_id) || ' ' || count(*) from exports";
    let others = "update alpha set n = n + 1; update gamma set n = n + 1";
    for (change, expected) in [
        ("select 1", "1 3 3"),
        ("update beta set n = 1 where k = 1", "2 6 6"),
        // The member that needs a full export gets one in the batch.
        ("truncate beta", "3 9 9"),
        ("insert into beta values (1, 2)", "4 12 12"),
    ] {
        database.run(&format!("{change}; {others}")).await;
        let (code, _, errors) = pull().await;
        assert_eq!((code, &*errors), (0, ""), "{change}");
        assert_eq!(database.one::<String>(batches).await, expected, "{change}");
    }
    // A member with a value that is too large fails the batch. The others have the next one.
    database.run(&format!("alter table beta add t text; update beta set t = repeat('x', 70000); {others}")).await;
    let (code, printed, errors) = pull().await;
    assert_eq!((code, printed.lines().count()), (1, 2), "{errors}");
    let (left_out, failed) = ("the other 2 datasets are exported without it", "1 of 3 datasets failed: beta");
    assert!(errors.contains("cdc-export: beta: ") && errors.contains(left_out) && errors.contains(failed), "{errors}");
    assert_eq!(database.one::<String>(batches).await, "6 17 18");
}

#[tokio::test]
async fn a_destination_that_goes_fails_a_batch_as_a_whole_and_is_said_once() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let held = database.open("lock table alpha in access exclusive mode").await;
    let folder = reachable_folder();
    let into = folder.path().to_str().unwrap();
    let pull = ["pull", "--consumer", "a", "--all-datasets", "--request", "delta", "--into", into];
    let pull = crate::harness::far(&[&pull[..], &["--server", &service.address]].concat());
    let pull = tokio::spawn(async { pull.output().await });
    let running = "select count(*) from exports where status = 'processing'";
    until("the batch runs", async || database.one::<i64>(running).await == 3).await;
    std::fs::remove_file(service.output().join(".cdc-export-store")).unwrap();
    held.rollback().await.unwrap();
    let (code, printed, said) = pull.await.unwrap();
    assert_eq!((code, &*printed, said.lines().count()), (1, "", 1), "{said}");
    let errors = "select count(*) || ' ' || string_agg(distinct error_code, ' ') from exports";
    assert_eq!(database.one::<String>(errors).await, "3 output_missing");
}

/// Whoever finds no room for a lock fails, also a user's own application.
#[tokio::test]
async fn a_batch_leaves_half_of_the_room_for_locks_to_others() {
    let home = reachable_folder();
    let settings = embedded_settings_with_cluster(&home.path().join("data")).await;
    let server = private_postgres::Server::start(&settings).await.unwrap();
    let admin = Database::at(connect_options(server.socket_folder()));
    admin.run("alter system set max_locks_per_transaction = 10").await;
    admin.run("alter system set max_connections = 25").await;
    server.stop().await;
    let server = private_postgres::Server::start(&settings).await.unwrap();
    let database = Database::at(connect_options(server.socket_folder()));
    let tables = "create table alpha (k int primary key); create table beta (k int primary key);
                  create table gamma (k int primary key) partition by range (k)";
    database.run(tables).await;
    let partitions = async |from: i32, to: i32| {
        for at in from..to {
            let part = format!("create table gamma_{at} partition of gamma for values from ({at}) to ({at} + 1)");
            database.run(&part).await;
        }
    };
    partitions(0, 200).await;
    let blocks = TABLES.map(|name| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\n")).concat();
    let catalog = Catalog::of(&blocks);
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    partitions(200, 300).await;
    let (_, said) = ends(catalog.command(&database, &["track", "gamma"]).await, 1, "");
    assert!(said.contains("`gamma` needs 301 locks at once"), "{said}");
    let service = catalog.start(&database).service().await;
    let refused = export_all(&service, "full", json!({ "datasets": "*" })).await;
    assert_eq!(refused["error"]["code"], "too_many_locks", "{refused}");
    let detail = refused["error"]["detail"].as_str().unwrap();
    // Three tables and 300 partitions, and once more one partition with its index.
    assert!(detail.contains("needs 305 locks at once") && detail.contains("Postgres has free now"), "{detail}");
    let alone = json!({ "dataset": "gamma" });
    let refused = crate::catalog::ended(&service, "/exports/full", Some("a"), alone).await;
    assert_eq!(refused["error"]["code"], "too_many_locks", "{refused}");
    let done = export_all(&service, "full", json!({ "datasets": ["alpha", "beta"] })).await;
    assert_eq!(done["status"], "completed", "{done}");
    service.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_batch_that_heals_makes_full_exports_where_only_they_go_on() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let started = json!({ "datasets": "*" });
    assert_eq!(export_all(&service, "delta", started.clone()).await["status"], "completed");
    // Two of three tables can't go on by a delta.
    let change = "update alpha set n = n + 1 where k = 1; alter table alpha alter n type bigint; alter table gamma alter n type bigint;
                  update beta set n = 7 where k = 2";
    database.run(change).await;
    let failed = export_all(&service, "delta", started).await;
    assert_eq!((&failed["status"], &failed["error"]["member"]), (&json!("failed"), &json!("alpha")), "{failed}");

    let healing = json!({ "datasets": "*", "heal": true });
    let healed = export_all(&service, "delta", healing.clone()).await;
    assert_eq!(
        (&healed["status"], &healed["heal"], &healed["exportType"]),
        (&json!("completed"), &json!(true), &json!("delta")),
        "{healed}"
    );
    let jobs = healed["jobs"].as_array().unwrap();
    let made: Vec<_> =
        jobs.iter().map(|job| (job["exportType"].as_str().unwrap(), job["rowsExported"].as_u64().unwrap())).collect();
    assert_eq!(made, [("full", 10), ("delta", 1), ("full", 10)], "{healed}");
    for job in jobs {
        let (name, kind) = (job["outputFilename"].as_str().unwrap(), job["exportType"].as_str().unwrap());
        assert!(name.starts_with(&format!("{kind}_")), "{job}");
        // The attempt that found it out doesn't count.
        assert_eq!((&job["attempt"], &job["error"]), (&json!(1), &Value::Null), "{job}");
    }
    // From there all go on together. A request with `heal` is another one than one without.
    let again = export_all(&service, "delta", healing.clone()).await;
    let types: Vec<_> = again["jobs"].as_array().unwrap().iter().map(|job| job["exportType"].clone()).collect();
    assert_eq!((&again["status"], types), (&json!("completed"), vec![json!("delta"); 3]), "{again}");

    // A retry has the type that was asked for.
    database.run("alter table alpha alter n type int; alter table beta rename to other").await;
    let failed = export_all(&service, "delta", json!({ "datasets": TABLES, "heal": true })).await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("table_missing")), "{failed}");
    database.run("alter table other rename to beta").await;
    let path = format!("/batches/{}/retry", failed["batchId"].as_str().unwrap());
    let retried: Value = post(&service, &path, None, &json!({})).await.json().await.unwrap();
    let retried = ended(&service, &retried["batchId"]).await;
    let types: Vec<_> = retried["jobs"].as_array().unwrap().iter().map(|job| job["exportType"].clone()).collect();
    assert_eq!(
        (&retried["status"], types),
        (&json!("completed"), vec![json!("full"), json!("delta"), json!("delta")]),
        "{retried}"
    );

    // Nothing could follow a full export of a table whose triggers are off. They go off while the batch waits.
    let held = database.open("lock table alpha in access exclusive mode").await;
    let waiting = batch(&service, "delta", json!({ "datasets": TABLES, "heal": true })).await;
    database.run("alter table beta disable trigger all").await;
    held.rollback().await.unwrap();
    let failed = ended(&service, &waiting["batchId"]).await;
    let why = (&failed["status"], &failed["error"]["code"], &failed["error"]["member"]);
    assert_eq!(why, (&json!("failed"), &json!("full_export_needed"), &json!("beta")), "{failed}");

    // An export of no batch has no `heal`.
    let answer = post(&service, "/exports/delta", Some("a"), &json!({ "dataset": "alpha", "heal": true })).await;
    assert_eq!(answer.status(), 400);
}
