//! The exports of a job are applied in one transaction of the target.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sqlx::Executor;

use crate::harness::{KILLED, Start, ends, eventually, far, silent, until};
use crate::hostile::lying;
use crate::mirrors::Mirror;
use crate::several_datasets::export_all;

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

/// The code of a job some of whose exports are missing.
const INCOMPLETE: &str = "job_incomplete";

/// Counts the transactions that brought the tables to their state.
const TRANSACTIONS: &str = "select count(distinct xmin::text) from cdc_apply.positions";

/// Selects the sums that pgbench keeps equal, and the number of transactions.
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
                    // A branch's row is locked first, so that no two writers wait for each other. The oldest row of the
                    // history is deleted, and inserted under another key.
                    let transaction = format!(
                        "begin; update sales.branches set balance = balance + {delta} where bid = {branch};
                         update sales.tellers set balance = balance + {delta} where tid = {teller};
                         update sales.accounts set balance = balance + {delta} where aid = {account};
                         insert into sales.history (tid, bid, aid, delta)
                         values ({teller}, {branch}, {account}, {delta});
                         with oldest as (
                           delete from sales.history where id = (select min(id) from sales.history) returning *)
                         insert into sales.history (tid, bid, aid, delta) select tid, bid, aid, delta from oldest; commit"
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
async fn a_dataset_that_needs_a_full_export_gets_one_and_the_others_go_on() {
    let mirror = Mirror::of(&["t1", "t2", "t3"]).await;
    mirror.applies_all("all").await;
    let statements =
        "alter table sales.t2 add note text; update sales.t1 set name = 'x'; update sales.t3 set name = 'x'";
    mirror.source.run(statements).await;
    ends(mirror.apply(&["--all-datasets"]).output().await, 0, "t2: full_export_needed");
    mirror.require_all_equal(&["t1", "t2", "t3"]).await;
}

#[tokio::test]
async fn a_kill_leaves_a_job_in_all_tables_or_in_none() {
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
    // It returns to the job of the round.
    let last = "select max(job::text) from exports where dataset = 'shares' and status = 'failed'";
    let whole = format!(
        "select exists (select from exports where dataset = 'shares' and job::text > ({last})
           and job in (select id from cdc_export.jobs where datasets is not null))"
    );
    mirror.source.run("update public.heads set n = 5").await;
    until("a job of all", async || mirror.source.one::<bool>(&whole).await).await;
    running.kill().await.unwrap();
    // One such job failed, not one in each round.
    let failed = "select count(*) from cdc_export.jobs where datasets is not null and status = 'failed'";
    assert_eq!(mirror.source.one::<i64>(failed).await, 1);
    ends(mirror.apply(&["--all-datasets"]).output().await, 0, "");
    mirror.require_all_equal(&["children", "parents", "shares"]).await;
}

#[tokio::test]
async fn a_job_of_which_one_table_fails_early_is_not_applied_in_part() {
    let mirror = Mirror::of(&["t1", "t2", "t3"]).await;
    mirror.applies_all("all").await;
    mirror.change(&["t1", "t2", "t3"], "x").await;
    // The position is ambiguous, so `apply` downloads no export of this dataset.
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
async fn a_job_waits_for_a_lane_that_has_an_earlier_job_before_it() {
    for (early, jobs) in [("t1", "1"), ("t2", "1"), ("t1", "4"), ("t2", "4")] {
        let mirror = Mirror::of(&["t1", "t2"]).await;
        silent(mirror.apply(&["--all-datasets"]).output().await);
        let body = json!({ "datasets": "*", "skipEmpty": true });
        mirror.change(&[early], "early").await;
        export_all(&mirror.service, "delta", body.clone()).await;
        mirror.change(&["t1", "t2"], "late").await;
        export_all(&mirror.service, "delta", body).await;
        let (code, printed, said) =
            mirror.apply(&["--all-datasets", "--request", "none", "--jobs", jobs]).output().await;
        assert_eq!((code, printed.lines().count(), said.as_str()), (0, 3, ""), "{early} {jobs}");
        assert_eq!(mirror.target.one::<i64>(TRANSACTIONS).await, 1, "{early} {jobs}: {printed}");
    }
}

#[tokio::test]
async fn a_new_table_beside_one_that_lags_goes_past_a_job() {
    for jobs in ["1", "4"] {
        let mirror = Mirror::of(&["t1", "t2"]).await;
        silent(mirror.apply(&["--dataset", "t1"]).output().await);
        for kind in ["delta", "full"] {
            mirror.change(&["t1", "t2"], kind).await;
            export_all(&mirror.service, kind, json!({ "datasets": "*" })).await;
        }
        // The new table begins with the full export, so it never comes to the job of the deltas.
        let call = ["--all-datasets", "--request", "none", "--jobs", jobs];
        let printed = silent(mirror.apply(&call).output().await);
        assert_eq!(printed.lines().count(), 3, "{jobs}: {printed}");
        mirror.require_all_equal(&["t1", "t2"]).await;
    }
}

/// Tables, and a job of their changes that is not applied yet.
async fn with_a_job_of(tables: &[&str]) -> Mirror {
    let mirror = Mirror::of(tables).await;
    mirror.applies_all("all").await;
    mirror.change(tables, "x").await;
    export_all(&mirror.service, "delta", json!({ "datasets": "*" })).await;
    mirror
}

/// Makes a call that applies all exports of the service at this address.
fn apply_from(mirror: &Mirror, server: &str, jobs: &str) -> Start {
    let to = mirror.target.url();
    let call = ["apply", "--to", &to, "--consumer", "a", "--all-datasets", "--request", "none", "--jobs", jobs];
    far(&[&call[..], &["--server", server]].concat())
}

/// Requires that nothing of the job is applied yet, and applies it.
async fn require_whole_job(mirror: &Mirror, server: &str) {
    for table in ["t1", "t2"] {
        let changed = format!("select count(*) from sales.{table} where name = 'x'");
        assert_eq!(mirror.target.one::<i64>(&changed).await, 0, "{table}");
    }
    let printed = silent(apply_from(mirror, server, "4").output().await);
    assert_eq!(printed.lines().count(), 2, "{printed}");
    mirror.require_all_equal(&["t1", "t2"]).await;
    assert_eq!(mirror.target.one::<i64>(TRANSACTIONS).await, 1);
}

/// The exports of a job are published in any order.
#[tokio::test]
async fn a_job_that_is_published_between_two_listings_is_not_applied_in_part() {
    let mirror = with_a_job_of(&["t1", "t2"]).await;
    for (late, early) in [("t1", "t2"), ("t2", "t1")] {
        // The list of what follows is as it was before the job.
        let server = lying(&mirror.service, move |path, value| {
            if path.contains(&format!("dataset={late}&")) && path.contains("after=") {
                *value = json!({ "items": [], "nextCursor": null });
            }
        })
        .await;
        for jobs in ["1", "4"] {
            let (code, printed, said) = apply_from(&mirror, &server, jobs).output().await;
            assert_eq!((code, printed.as_str()), (1, ""), "{late} {jobs}: {said}");
            let missing = format!("the export 2 of {late} in the same job was not there in time");
            assert!(said.contains(&format!("{early}: {INCOMPLETE}: {missing}")), "{late} {jobs}: {said}");
        }
    }
    require_whole_job(&mirror, &mirror.service.address).await;
}

/// Makes two jobs that share no dataset, and are not applied yet. Also returns the id of the first one.
async fn with_two_jobs() -> (Mirror, Value) {
    let tables = ["t1", "t2", "t3", "t4"];
    let mirror = Mirror::of(&tables).await;
    mirror.applies_all("all").await;
    mirror.change(&tables, "x").await;
    let first = export_all(&mirror.service, "delta", json!({ "datasets": ["t1", "t2"] })).await;
    export_all(&mirror.service, "delta", json!({ "datasets": ["t3", "t4"] })).await;
    (mirror, first["jobId"].clone())
}

#[tokio::test]
async fn no_job_is_applied_behind_one_that_is_left_out() {
    let (mirror, _) = with_two_jobs().await;
    let server = lying(&mirror.service, |path, value| {
        if path.contains("dataset=t1&") && path.contains("after=") {
            *value = json!({ "items": [], "nextCursor": null });
        }
    })
    .await;
    for jobs in ["1", "4"] {
        let (code, printed, said) = apply_from(&mirror, &server, jobs).output().await;
        assert_eq!((code, printed.as_str()), (1, ""), "{jobs}: {said}");
        assert!(said.contains("3 of 4 datasets failed: t2, t3, t4"), "{jobs}: {said}");
    }
    let printed = silent(apply_from(&mirror, &mirror.service.address, "4").output().await);
    assert_eq!(printed.lines().count(), 4, "{printed}");
    mirror.require_all_equal(&["t1", "t2", "t3", "t4"]).await;
}

/// Some lanes may have been listed before the job was there.
#[tokio::test]
async fn a_job_that_was_requested_after_the_round_began_is_applied_in_the_next_one() {
    let (mirror, first) = with_two_jobs().await;
    let server = lying(&mirror.service, move |path, value| {
        if path.ends_with("/exports?consumer=a&limit=1") {
            value["items"][0]["jobId"] = first.clone();
        }
    })
    .await;
    let at_first = silent(apply_from(&mirror, &server, "4").output().await);
    assert_eq!(at_first.lines().count(), 2, "{at_first}");
    mirror.require_all_equal(&["t1", "t2"]).await;
    let then = silent(apply_from(&mirror, &mirror.service.address, "4").output().await);
    assert_eq!(then.lines().count(), 2, "{then}");
    mirror.require_all_equal(&["t3", "t4"]).await;
}

#[tokio::test]
async fn a_job_is_applied_once_the_service_has_published_all_of_its_exports() {
    let mirror = with_a_job_of(&["t1", "t2"]).await;
    // The first looks find one export that is not published.
    let looks = Arc::new(AtomicUsize::new(0));
    let looked = Arc::clone(&looks);
    let server = lying(&mirror.service, move |_, value| {
        if let Some(exports) = value.get_mut("exports")
            && looked.fetch_add(1, Ordering::Relaxed) < 3
        {
            exports[0]["number"] = Value::Null;
            value["status"] = json!("processing");
        }
    })
    .await;
    require_whole_job(&mirror, &server).await;
    assert_eq!(looks.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn the_other_exports_of_a_job_that_lost_a_file_are_applied_together() {
    let mirror = with_a_job_of(&["t1", "t2", "t3"]).await;
    let server = lying(&mirror.service, |path, value| {
        if path.contains("dataset=t2&") && path.contains("after=") {
            *value = json!({ "items": [], "nextCursor": null });
        } else if let Some(exports) = value.get_mut("exports") {
            exports[1]["number"] = Value::Null;
            value["status"] = json!("failed");
            value["error"] = json!({ "code": "file_lost", "detail": "its file is lost", "dataset": "t2" });
        }
    })
    .await;
    let (printed, _) = ends(apply_from(&mirror, &server, "4").output().await, 0, "t2: its file is lost");
    assert_eq!(printed.lines().count(), 2, "{printed}");
    assert_eq!(mirror.target.one::<i64>(&format!("{TRANSACTIONS} where dataset <> 't2'")).await, 1);
    mirror.require_all_equal(&["t1", "t3"]).await;
}

#[tokio::test]
async fn a_job_of_a_folder_is_applied_once_all_of_its_manifests_are_there() {
    let tables = ["t1", "t2", "t3"];
    // No copy of the third table is asked for.
    let copied = &tables[..2];
    let mirror = Mirror::of(&tables).await;
    let (place, to) = (mirror.service.output().to_str().unwrap().to_owned(), mirror.target.url());
    let apply = async |datasets: &[&str]| {
        let call = ["apply", "--to", &to, "--consumer", "a", "--from", &place];
        let lanes: Vec<_> = datasets.iter().flat_map(|dataset| ["--dataset", *dataset]).collect();
        far(&[&call[..], &lanes].concat()).output().await
    };
    let export = async |kind: &str| {
        let job = export_all(&mirror.service, kind, json!({ "datasets": "*" })).await;
        let path = |export: &Value| mirror.service.path(export).with_extension("manifest.json");
        job["exports"].as_array().unwrap().iter().map(path).collect::<Vec<_>>()
    };
    export("full").await;
    silent(apply(copied).await);

    mirror.change(&tables, "x").await;
    let manifests = export("delta").await;
    let hidden: Vec<_> = manifests.iter().map(|manifest| manifest.with_extension("hidden")).collect();
    for order in [[0, 1, 2], [2, 1, 0]] {
        for at in order {
            std::fs::rename(&manifests[at], &hidden[at]).unwrap();
        }
        for (shown, at) in order.into_iter().enumerate() {
            let (code, printed, said) = apply(copied).await;
            let waiting: Vec<_> = order[..shown].iter().filter(|at| **at < copied.len()).collect();
            assert_eq!((code, printed.as_str()), (i32::from(!waiting.is_empty()), ""), "{order:?} {shown}: {said}");
            for at in waiting {
                let incomplete = format!("{}: {INCOMPLETE}: {shown} of the 3 exports of the job", tables[*at]);
                assert!(said.contains(&incomplete), "{order:?} {shown}: {said}");
            }
            std::fs::rename(&hidden[at], &manifests[at]).unwrap();
        }
    }
    // A manifest that was changed is none.
    let text = std::fs::read_to_string(&manifests[2]).unwrap();
    std::fs::write(&manifests[2], text.replace("\"rows\":\"1\"", "\"rows\":\"2\"")).unwrap();
    let (printed, _) = ends(apply(copied).await, 1, &format!("t1: {INCOMPLETE}: 2 of the 3 exports of the job"));
    assert_eq!(printed, "");
    std::fs::write(&manifests[2], text).unwrap();
    let printed = silent(apply(copied).await);
    assert_eq!(printed.lines().count(), 2, "{printed}");
    mirror.require_all_equal(copied).await;
    assert_eq!(mirror.target.one::<i64>(TRANSACTIONS).await, 1);

    // A dataset that is read alone goes on if a manifest of another one stays away, and all go on by full exports.
    mirror.change(&tables, "y").await;
    std::fs::remove_file(&export("delta").await[2]).unwrap();
    ends(apply(copied).await, 1, &format!("t2: {INCOMPLETE}: 2 of the 3 exports of the job"));
    silent(apply(&["t1"]).await);
    mirror.require_all_equal(&["t1"]).await;
    export("full").await;
    ends(apply(copied).await, 0, &format!("t2: {INCOMPLETE}: "));
    mirror.require_all_equal(copied).await;
}

#[tokio::test]
async fn exports_of_a_folder_are_applied_job_by_job() {
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
        assert_eq!(mirror.target.one::<i64>(TRANSACTIONS).await, 1, "{printed}");
    };
    export_all(&mirror.service, "delta", json!({ "datasets": "*" })).await;
    apply().await;
    // Each job has items whose orders come with it, and its tables change by each other's order.
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
