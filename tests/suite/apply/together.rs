//! The exports of a batch are applied in one transaction of the target.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::response::IntoResponse;
use serde_json::json;
use sqlx::Executor;

use crate::batches::export_all;
use crate::harness::{KILLED, ends, eventually, far, serving, silent, until};
use crate::mirrors::Mirror;

/// The tables of pgbench, with a key of the history.
const BANK: &str = "
    create table sales.branches (bid int primary key, balance int not null);
    create table sales.tellers (tid int primary key, bid int not null references sales.branches, balance int not null);
    create table sales.accounts (aid int primary key, bid int not null references sales.branches, balance int not null);
    create table sales.history (id bigserial primary key, tid int not null references sales.tellers,
      bid int not null references sales.branches, aid int not null references sales.accounts, delta int not null);
    insert into sales.branches select b, 0 from generate_series(1, 2) b;
    insert into sales.tellers select t, 1 + t % 2, 0 from generate_series(1, 10) t;
    insert into sales.accounts select a, 1 + a % 2, 0 from generate_series(1, 500) a;";

/// The sums that pgbench keeps equal, and the number of transactions.
const SUMS: &str = "select array[(select coalesce(sum(balance), 0) from sales.branches),
      (select coalesce(sum(balance), 0) from sales.tellers),
      (select coalesce(sum(balance), 0) from sales.accounts), (select coalesce(sum(delta), 0) from sales.history),
      (select count(*) from sales.history)]::bigint[]";

#[tokio::test]
async fn a_copy_is_of_one_moment_at_each_look_while_a_bank_works() {
    let tables = ["accounts", "branches", "history", "tellers"];
    let mirror = Mirror::made(&tables, BANK).await;
    mirror.applies_all("all").await;
    let is_open = Arc::new(AtomicBool::new(true));
    let writers: Vec<_> = (0..3)
        .map(|writer: i32| {
            let (pool, is_open) = (mirror.source.pool.clone(), Arc::clone(&is_open));
            tokio::spawn(async move {
                let mut at = writer;
                while is_open.load(Ordering::Relaxed) {
                    at = (at * 31 + 7) % 5000;
                    let (account, teller, branch, delta) = (1 + at % 500, 1 + at % 10, 1 + at % 2, at - 2500);
                    // A teller's row is locked first, so that no two writers wait for each other.
                    let transaction = format!(
                        "begin; update sales.branches set balance = balance + {delta} where bid = {branch};
                         update sales.tellers set balance = balance + {delta} where tid = {teller};
                         update sales.accounts set balance = balance + {delta} where aid = {account};
                         insert into sales.history (tid, bid, aid, delta) values ({teller}, {branch}, {account}, {delta}); commit"
                    );
                    pool.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(transaction))).await.unwrap();
                }
            })
        })
        .collect();

    let (mut running, _folder) = mirror.apply(&["--all-datasets", "--every", "100ms"]).spawn();
    let moments = Mutex::new(BTreeSet::new());
    let ten_moments = async || {
        let sums: Vec<i64> = mirror.target.one(SUMS).await;
        assert!(sums[..4].iter().all(|sum| *sum == sums[0]), "{sums:?}");
        let mut moments = moments.lock().unwrap();
        moments.insert(sums[4]);
        (moments.len() >= 10).then_some(())
    };
    eventually("ten moments", ten_moments).await;
    // Full exports replace the rows of all tables, also in one transaction.
    export_all(&mirror.service, "full", json!({ "datasets": "*" })).await;
    moments.lock().unwrap().clear();
    eventually("ten more moments", ten_moments).await;
    is_open.store(false, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    running.kill().await.unwrap();
    ends(mirror.apply(&["--all-datasets"]).output().await, 0, "");
    mirror.require_all_equal(&tables).await;
}

#[tokio::test]
async fn a_member_that_needs_a_full_export_gets_one_and_the_others_go_on() {
    let mirror = Mirror::of(&["t1", "t2", "t3"]).await;
    mirror.applies_all("all").await;
    let statements =
        "alter table sales.t2 add note text; update sales.t1 set name = 'x'; update sales.t3 set name = 'x'";
    mirror.source.run(statements).await;
    ends(mirror.apply(&["--all-datasets"]).output().await, 0, "t2: full_export_needed");
    mirror.require_all_equal(&["t1", "t2", "t3"]).await;
}

#[tokio::test]
async fn a_kill_leaves_a_batch_in_all_tables_or_in_none() {
    let tables = ["t1", "t2", "t3"];
    let mirror = Mirror::of(&tables).await;
    mirror.applies_all("all").await;
    let faults = [("apply.fetched", 0), ("apply.staged", 0), ("apply.applied", 0), ("apply.committed", 3)];
    for (fault, expected) in faults {
        mirror.change(&tables, fault).await;
        let killed = mirror.apply(&["--all-datasets"]).with("FAILPOINTS", format!("{fault}=kill"));
        assert_eq!(killed.output().await.0, KILLED, "{fault}");
        let mut copies = 0;
        for table in tables {
            let copied = format!("select count(*) from sales.{table} where name = '{fault}'");
            copies += mirror.target.one::<i64>(&copied).await;
        }
        assert_eq!(copies, expected, "{fault}");
        mirror.applies_all(fault).await;
        mirror.require_all_equal(&tables).await;
    }
}

#[tokio::test]
async fn a_view_that_cannot_be_read_holds_up_no_other_table() {
    let dataset = |name: &str, more: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"sales.{name}\"\n{more}");
    let file = [dataset("children", ""), dataset("parents", ""), dataset("shares", "capture = \"none\"\n")].concat();
    let made = "create schema sales; create table sales.parents (id int primary key, v text);
                create table sales.children (id int primary key, parent int not null references sales.parents);
                insert into sales.parents values (1, 'x'); insert into sales.children values (1, 1);
                create table public.heads (n int); insert into public.heads values (2);
                create view sales.shares as select 10 / n as share from public.heads";
    let mirror = Mirror::of_file(&file, made).await;
    mirror.applies_all("all").await;
    mirror.source.run("update public.heads set n = 0; insert into sales.parents values (3, 'z')").await;
    let (mut running, _folder) = mirror.apply(&["--all-datasets", "--every", "100ms"]).spawn_piped();
    until("the parent", async || {
        mirror.target.one::<bool>("select exists (select from sales.parents where id = 3)").await
    })
    .await;
    // It returns to the batch.
    let last = "select max(created_at) from exports where dataset = 'shares' and status = 'failed'";
    let whole = format!(
        "select exists (select from exports where batch_id is not null and dataset = 'shares' and created_at > ({last}))"
    );
    mirror.source.run("update public.heads set n = 5").await;
    until("a batch of all", async || mirror.source.one::<bool>(&whole).await).await;
    running.kill().await.unwrap();
    // One batch failed, not one in each round.
    let failed = "select count(distinct batch_id) from exports where status = 'failed'";
    assert_eq!(mirror.source.one::<i64>(failed).await, 1);
    ends(mirror.apply(&["--all-datasets"]).output().await, 0, "");
    mirror.require_all_equal(&["children", "parents", "shares"]).await;
}

#[tokio::test]
async fn a_batch_of_which_one_table_fails_early_is_not_applied_in_part() {
    let mirror = Mirror::of(&["t1", "t2", "t3"]).await;
    mirror.applies_all("all").await;
    mirror.change(&["t1", "t2", "t3"], "x").await;
    // Its position can't be told, so no export of it is even downloaded.
    let twice = "insert into cdc_apply.positions select 'public.other', consumer, dataset, source, oid, job, number, digest, details, applied_at
                 from cdc_apply.positions where dataset = 't2'";
    mirror.target.run(twice).await;
    let (code, printed, said) = mirror.apply(&["--all-datasets"]).output().await;
    assert_eq!((code, printed.as_str(), said.lines().count()), (1, "", 2), "{said}");
    assert!(said.contains("t2: table_name") && said.contains("3 of 3 datasets failed"), "{said}");
    mirror.target.run("delete from cdc_apply.positions where target = 'public.other'").await;
    mirror.applies_all("all").await;
    mirror.require_all_equal(&["t1", "t2", "t3"]).await;
}

#[tokio::test]
async fn a_batch_waits_for_a_lane_that_has_an_earlier_batch_before_it() {
    for (early, jobs) in [("t1", "1"), ("t2", "1"), ("t1", "4"), ("t2", "4")] {
        let mirror = Mirror::of(&["t1", "t2"]).await;
        silent(mirror.apply(&["--all-datasets"]).output().await);
        let batch = json!({ "datasets": "*", "skipEmpty": true });
        mirror.change(&[early], "early").await;
        export_all(&mirror.service, "delta", batch.clone()).await;
        mirror.change(&["t1", "t2"], "late").await;
        export_all(&mirror.service, "delta", batch).await;
        let (code, printed, said) =
            mirror.apply(&["--all-datasets", "--request", "none", "--jobs", jobs]).output().await;
        assert_eq!((code, printed.lines().count(), said.as_str()), (0, 3, ""), "{early} {jobs}");
        let transactions = "select count(distinct xmin::text) from cdc_apply.positions";
        assert_eq!(mirror.target.one::<i64>(transactions).await, 1, "{early} {jobs}: {printed}");
    }
}

#[tokio::test]
async fn a_new_table_beside_one_that_lags_goes_past_a_batch() {
    for jobs in ["1", "4"] {
        let mirror = Mirror::of(&["t1", "t2"]).await;
        silent(mirror.apply(&["--dataset", "t1"]).output().await);
        for kind in ["delta", "full"] {
            mirror.change(&["t1", "t2"], kind).await;
            export_all(&mirror.service, kind, json!({ "datasets": "*" })).await;
        }
        // The new table begins with the full export, so it never comes to the batch of the deltas.
        let call = ["--all-datasets", "--request", "none", "--jobs", jobs];
        let printed = silent(mirror.apply(&call).output().await);
        assert_eq!(printed.lines().count(), 3, "{jobs}: {printed}");
        mirror.require_all_equal(&["t1", "t2"]).await;
    }
}

/// A service that answers the list of what follows in `t2` as it was before a batch.
async fn listing_late(mirror: &Mirror) -> String {
    let (client, behind) = (mirror.service.client.clone(), mirror.service.address.clone());
    let handler = async move |request: axum::extract::Request| {
        let call = request.uri().to_string();
        if call.contains("dataset=t2") && call.contains("after=") {
            return axum::Json(json!({ "items": [], "nextCursor": null })).into_response();
        }
        let answer = client.get(format!("{behind}{call}")).send().await.unwrap();
        axum::response::Response::from(answer).map(axum::body::Body::new)
    };
    serving(axum::Router::new().fallback(handler)).await
}

#[tokio::test]
async fn a_batch_that_is_published_between_two_listings_is_not_applied_in_part() {
    let mirror = Mirror::of(&["t1", "t2"]).await;
    mirror.applies_all("all").await;
    mirror.change(&["t1", "t2"], "x").await;
    export_all(&mirror.service, "delta", json!({ "datasets": "*" })).await;
    let (to, late) = (mirror.target.url(), listing_late(&mirror).await);
    for jobs in ["1", "4"] {
        let call = ["apply", "--to", &to, "--consumer", "a", "--all-datasets", "--request", "none", "--jobs", jobs];
        let (code, printed, said) = far(&[&call[..], &["--server", &late]].concat()).output().await;
        assert_eq!((code, printed.as_str()), (1, ""), "{jobs}: {said}");
        let missing = "t1: batch_incomplete: the export 2 of t2 in the same batch was not there in time";
        assert!(said.contains(missing), "{jobs}: {said}");
    }
    assert_eq!(mirror.target.one::<i64>("select count(*) from sales.t1 where name = 'x'").await, 0);
    let printed = silent(mirror.apply(&["--all-datasets", "--request", "none"]).output().await);
    assert_eq!(printed.lines().count(), 2, "{printed}");
    mirror.require_all_equal(&["t1", "t2"]).await;
    let transactions = "select count(distinct xmin::text) from cdc_apply.positions";
    assert_eq!(mirror.target.one::<i64>(transactions).await, 1);
}

#[tokio::test]
async fn a_batch_of_a_folder_waits_for_its_manifest() {
    let tables = ["t1", "t2"];
    let mirror = Mirror::of(&tables).await;
    let (place, to) = (mirror.service.output().to_str().unwrap().to_owned(), mirror.target.url());
    let lanes = ["--dataset", "t1", "--dataset", "t2"];
    let apply = async || {
        let call = ["apply", "--to", &to, "--consumer", "a", "--from", &place];
        far(&[&call[..], &lanes].concat()).output().await
    };
    export_all(&mirror.service, "full", json!({ "datasets": "*" })).await;
    silent(apply().await);
    mirror.change(&tables, "x").await;
    let batch = export_all(&mirror.service, "delta", json!({ "datasets": "*" })).await;
    // As while the service publishes the batch.
    let id = batch["batchId"].as_str().unwrap();
    let manifest = mirror.service.output().join(format!("_batches/a/{id}.manifest.json"));
    let aside = manifest.with_extension("aside");
    std::fs::rename(&manifest, &aside).unwrap();
    let (code, printed, said) = apply().await;
    assert_eq!((code, printed.as_str()), (1, ""), "{said}");
    assert!(said.contains("t1: batch_incomplete: 0 of the 2 exports"), "{said}");
    std::fs::rename(&aside, &manifest).unwrap();
    silent(apply().await);
    mirror.require_all_equal(&tables).await;
    // A newer full export of each goes past a batch that stays without one.
    mirror.change(&tables, "y").await;
    let batch = export_all(&mirror.service, "delta", json!({ "datasets": "*" })).await;
    let id = batch["batchId"].as_str().unwrap();
    std::fs::remove_file(mirror.service.output().join(format!("_batches/a/{id}.manifest.json"))).unwrap();
    export_all(&mirror.service, "full", json!({ "datasets": "*" })).await;
    ends(apply().await, 0, "batch_incomplete");
    mirror.require_all_equal(&tables).await;
}

#[tokio::test]
async fn exports_of_a_folder_are_applied_batch_by_batch() {
    let tables =
        "create table sales.orders (id int primary key); create table sales.items (id int primary key, \"order\" int);
                  insert into sales.orders values (1); insert into sales.items values (1, 1);";
    let mirror = Mirror::made(&["items", "orders"], tables).await;
    let place = mirror.service.output().to_str().unwrap().to_owned();
    let to = mirror.target.url();
    let apply = async || {
        let lanes = ["--dataset", "items", "--dataset", "orders"];
        let call = ["apply", "--to", &to, "--consumer", "a", "--from", &place];
        let printed = silent(far(&[&call[..], &lanes].concat()).output().await);
        mirror.require_all_equal(&["items", "orders"]).await;
        let transactions = "select count(distinct xmin::text) from cdc_apply.positions";
        assert_eq!(mirror.target.one::<i64>(transactions).await, 1, "{printed}");
    };
    export_all(&mirror.service, "delta", json!({ "datasets": "*" })).await;
    apply().await;
    // Each batch has items whose orders come with it, and its tables change by each other's order.
    for round in 2..4 {
        let changes = format!(
            "insert into sales.orders values ({round}); insert into sales.items values ({round}, {round});
             delete from sales.items where id = {round} - 1; delete from sales.orders where id = {round} - 1"
        );
        mirror.source.run(&changes).await;
        export_all(&mirror.service, "delta", json!({ "datasets": "*" })).await;
    }
    apply().await;
}
