//! The exports of a batch are applied in one transaction of the target, in which foreign keys hold.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sqlx::Executor;

use crate::batches::export_all;
use crate::catalog::export;
use crate::harness::{KILLED, eventually, far};
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

/// The foreign keys of the tables, which a target gets from its owner.
const BANK_KEYS: &str = "
    alter table sales.tellers add foreign key (bid) references sales.branches;
    alter table sales.accounts add foreign key (bid) references sales.branches;
    alter table sales.history add foreign key (tid) references sales.tellers, add foreign key (bid) references sales.branches,
      add foreign key (aid) references sales.accounts;";

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
    mirror.target.run(BANK_KEYS).await;

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
    eventually("ten moments", async || {
        let sums: Vec<i64> = mirror.target.one(SUMS).await;
        assert!(sums[..4].iter().all(|sum| *sum == sums[0]), "{sums:?}");
        let mut moments = moments.lock().unwrap();
        moments.insert(sums[4]);
        (moments.len() >= 10).then_some(())
    })
    .await;
    is_open.store(false, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    running.kill().await.unwrap();
    let (code, _, said) = mirror.apply(&["--all-datasets"]).output().await;
    assert_eq!(code, 0, "{said}");
    mirror.require_all_equal(&tables).await;
    mirror.service.stop().await;
}

/// Customers, their orders and the items of these; a tree; two tables that reference each other. The statements make
/// them with foreign keys in the source, and the keys alone in the target.
const SHOP: &str = "
    create table sales.customers (id int primary key, email text, name text);
    create table sales.orders (id int primary key, customer int);
    create table sales.items (id int primary key, \"order\" int, n int);
    create table sales.tree (id int primary key, parent int);
    create table sales.heads (id int primary key, team int);
    create table sales.teams (id int primary key, head int);
    create table sales.prices (id numeric primary key, note text);
    create table sales.offers (id int primary key, price numeric, former int);
    create table sales.parts (id int, customer int, primary key (id)) partition by range (id);
    create table sales.parts_1 partition of sales.parts for values from (0) to (100);
    create table sales.chain_1 (id int primary key, up int);
    create table sales.chain_2 (id int primary key, up int);
    create table sales.chain_3 (id int primary key);";

const SHOP_KEYS: &str = "
    alter table sales.customers add unique (email);
    alter table sales.orders add foreign key (customer) references sales.customers on delete cascade;
    alter table sales.items add foreign key (\"order\") references sales.orders on delete cascade;
    alter table sales.tree add foreign key (parent) references sales.tree;
    alter table sales.heads add foreign key (team) references sales.teams deferrable;
    alter table sales.teams add foreign key (head) references sales.heads;
    alter table sales.offers add foreign key (price) references sales.prices on delete cascade on update cascade;
    alter table sales.offers add foreign key (former) references sales.offers on delete set null;
    alter table sales.parts_1 add foreign key (customer) references sales.customers;
    alter table sales.chain_1 add foreign key (up) references sales.chain_2 on delete restrict deferrable;
    alter table sales.chain_2 add foreign key (up) references sales.chain_3 on delete restrict deferrable;";

const SHOP_ROWS: &str = "
    insert into sales.customers select g, 'c' || g, 'n' from generate_series(1, 6) g;
    insert into sales.orders select g, 1 + g % 6 from generate_series(1, 12) g;
    insert into sales.items select g, 1 + g % 12, g from generate_series(1, 24) g;
    insert into sales.tree select g, nullif(g / 2, 0) from generate_series(1, 15) g;
    insert into sales.prices values (1.0, 'x'), (2, 'z');
    insert into sales.offers values (1, 1.0, null), (2, 2, 1);
    insert into sales.chain_3 values (1); insert into sales.chain_2 values (1, 1); insert into sales.chain_1 values (1, 1);";

#[tokio::test]
async fn rows_come_and_go_in_the_order_of_the_foreign_keys() {
    let tables = [
        "chain_1",
        "chain_2",
        "chain_3",
        "customers",
        "heads",
        "items",
        "offers",
        "orders",
        "parts",
        "prices",
        "teams",
        "tree",
    ];
    let mirror = Mirror::made(&tables, &format!("{SHOP}{SHOP_KEYS}{SHOP_ROWS}")).await;
    // The target's tables have their foreign keys from the beginning.
    mirror.target.run(&format!("create schema sales; {SHOP}{SHOP_KEYS}")).await;
    let changes = [
        ("the first exports", ""),
        ("a customer goes, with orders and items", "delete from sales.customers where id = 1"),
        (
            "an order gets another customer, and the one before goes: its items stay",
            "begin; update sales.orders set customer = 3 where customer = 2;
             delete from sales.customers where id = 2; commit",
        ),
        (
            "a new customer, order and item at once",
            "begin; insert into sales.customers values (20, 'c20', 'n'); insert into sales.orders values (100, 20);
             insert into sales.items values (1000, 100, 1); commit",
        ),
        (
            "items get another order, and the one before goes",
            "begin; update sales.items set \"order\" = 100 where \"order\" = 3;
             delete from sales.orders where id = 3; commit",
        ),
        ("a tree is turned round", "begin; update sales.tree set parent = 15 where id = 1;
         update sales.tree set parent = null where id = 15;
             update sales.tree set parent = 1 where id in (7, 3); commit"),
        ("the leaves of a tree go, and new ones come", "delete from sales.tree where id in (8, 9, 10, 11);
         insert into sales.tree values (50, 4)"),
        (
            "two rows that reference each other come",
            "begin; set constraints all deferred; insert into sales.heads values (1, 1), (2, 2);
             insert into sales.teams values (1, 1), (2, 2); commit",
        ),
        (
            "one pair goes, and the other swaps",
            "begin; set constraints all deferred; delete from sales.teams where id = 1; delete from sales.heads where id = 1;
             insert into sales.heads values (3, 3); insert into sales.teams values (3, 3); commit",
        ),
        ("a chain goes", "begin; delete from sales.chain_1; delete from sales.chain_2; delete from sales.chain_3; commit"),
        ("a key is written otherwise", "update sales.prices set id = 1.00, note = 'new' where id = 1"),
        (
            "a customer with orders goes, and a new one has its email",
            "begin; delete from sales.customers where id = 4; insert into sales.customers values (40, 'c4', 'n'); commit",
        ),
        (
            "a row of a partition and its customer come",
            "begin; insert into sales.customers values (60, 'c60', 'n'); insert into sales.parts values (1, 60); commit",
        ),
        (
            "a row of a partition gets another customer, and the one before goes",
            "begin; insert into sales.customers values (61, 'c61', 'n'); update sales.parts set customer = 61;
             delete from sales.customers where id = 60; commit",
        ),
    ];
    for (what, statements) in changes {
        mirror.source.run(statements).await;
        mirror.applies_all(what).await;
        mirror.require_all_equal(&tables).await;
    }
    // A full export of each replaces nothing that is there. If asked to, it empties all tables together.
    mirror.source.run("truncate sales.items").await;
    for more in [&["--full", "merge"][..], &["--full", "truncate"]] {
        export_all(&mirror.service, "full", json!({ "datasets": "*" })).await;
        mirror.target.run("delete from sales.tree where id = 50").await;
        let (code, _, said) = mirror.apply(&[&["--all-datasets"], more].concat()).output().await;
        assert_eq!(code, 0, "{more:?}: {said}");
        mirror.require_all_equal(&tables).await;
    }
    mirror.service.stop().await;
}

#[tokio::test]
async fn a_member_that_needs_a_full_export_gets_one_and_the_others_go_on() {
    let mirror = Mirror::of(&["t1", "t2", "t3"]).await;
    mirror.applies_all("all").await;
    mirror
        .source
        .run("alter table sales.t2 add note text; update sales.t1 set name = 'x'; update sales.t3 set name = 'x'")
        .await;
    let (code, printed, said) = mirror.apply(&["--all-datasets"]).output().await;
    assert!(code == 0 && said.contains("t2: schema_changed"), "{printed} {said}");
    mirror.require_all_equal(&["t1", "t2", "t3"]).await;
    mirror.service.stop().await;
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
    mirror.service.stop().await;
}

/// A parent and a child, of which the target has one row each, and a foreign key.
async fn family() -> Mirror {
    let made = "create table sales.parents (id int primary key, v text);
                create table sales.children (id int primary key, parent int not null references sales.parents);
                insert into sales.parents values (1, 'x'); insert into sales.children values (1, 1);";
    let mirror = Mirror::made(&["children", "parents"], made).await;
    mirror.applies_all("all").await;
    mirror.target.run("alter table sales.children add foreign key (parent) references sales.parents").await;
    mirror
}

#[tokio::test]
async fn tables_whose_exports_part_come_together_again_by_full_exports() {
    let others = "begin; delete from sales.children; delete from sales.parents; insert into sales.parents (id, v) values (2, 'y');
                  insert into sales.children values (2, 2); commit";
    for what in ["a new column", "single exports"] {
        let mirror = family().await;
        if what == "a new column" {
            // Only a full export of the parents can follow. Alone it can't take away the row that a child still has.
            mirror.source.run(&format!("alter table sales.parents add w int; {others}")).await;
        } else {
            // No order of these two fits the foreign key at each moment.
            mirror.source.run("delete from sales.children; delete from sales.parents").await;
            export(&mirror.service, "delta", "parents", "a").await;
            mirror.source.run(others).await;
            export(&mirror.service, "delta", "children", "a").await;
        }
        let (code, printed, said) = mirror.apply(&["--all-datasets"]).output().await;
        assert!(
            code == 0 && said.contains("asking for full exports of all these datasets together"),
            "{what}: {printed} {said}"
        );
        mirror.require_all_equal(&["children", "parents"]).await;
        mirror.applies_all(what).await;
        mirror.service.stop().await;
    }
}

/// A view whose query fails is left out of the batches, also of those of full exports, until it can be read again.
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
    mirror.target.run("alter table sales.children add foreign key (parent) references sales.parents").await;
    mirror.source.run("update public.heads set n = 0; insert into sales.parents values (3, 'z')").await;
    let (mut running, _folder) = mirror.apply(&["--all-datasets", "--every", "100ms"]).spawn_piped();
    eventually("the parent", async || {
        mirror.target.one::<bool>("select exists (select from sales.parents where id = 3)").await.then_some(())
    })
    .await;
    // It returns to the batch.
    let last = "select max(created_at) from exports where dataset = 'shares' and status = 'failed'";
    let whole = format!(
        "select exists (select from exports where batch_id is not null and dataset = 'shares' and created_at > ({last}))"
    );
    mirror.source.run("update public.heads set n = 5").await;
    eventually("a batch of all", async || mirror.source.one::<bool>(&whole).await.then_some(())).await;
    running.kill().await.unwrap();
    // One batch failed, not one in each round.
    let failed = "select count(distinct batch_id) from exports where status = 'failed'";
    assert_eq!(mirror.source.one::<i64>(failed).await, 1);
    let (code, _, said) = mirror.apply(&["--all-datasets"]).output().await;
    assert_eq!(code, 0, "{said}");
    mirror.require_all_equal(&["children", "parents", "shares"]).await;

    // Only full exports of both tables together help.
    let both = "begin; delete from sales.children; delete from sales.parents; insert into sales.parents (id, v) values (2, 'y');
                insert into sales.children values (2, 2); commit";
    mirror.source.run(&format!("update public.heads set n = 0; alter table sales.parents add w int; {both}")).await;
    let (code, printed, said) = mirror.apply(&["--all-datasets"]).output().await;
    assert!(said.contains("asking for full exports of all these datasets together"), "{printed} {said}");
    assert!(said.contains("shares: ") && said.contains("the other 2 datasets are exported without it"), "{said}");
    assert!(code == 1 && said.ends_with("1 of 3 datasets failed: shares\n"), "{said}");
    mirror.require_all_equal(&["children", "parents"]).await;
    mirror.service.stop().await;
}

#[tokio::test]
async fn a_batch_of_which_one_table_fails_early_is_not_applied_in_part() {
    let mirror = Mirror::of(&["t1", "t2", "t3"]).await;
    mirror.applies_all("all").await;
    mirror.change(&["t1", "t2", "t3"], "x").await;
    // Its position can't be told, so no export of it is even downloaded.
    let twice = "insert into cdc_apply.positions select 'public.other', consumer, dataset, source, job, number, digest, details, applied_at
                 from cdc_apply.positions where dataset = 't2'";
    mirror.target.run(twice).await;
    let (code, printed, said) = mirror.apply(&["--all-datasets"]).output().await;
    assert_eq!((code, printed.as_str(), said.lines().count()), (1, "", 2), "{said}");
    assert!(said.contains("t2: several_tables") && said.contains("3 of 3 datasets failed"), "{said}");
    mirror.target.run("delete from cdc_apply.positions where target = 'public.other'").await;
    mirror.applies_all("all").await;
    mirror.require_all_equal(&["t1", "t2", "t3"]).await;
    mirror.service.stop().await;
}

#[tokio::test]
async fn a_batch_waits_for_a_lane_that_has_an_earlier_batch_before_it() {
    for (early, jobs) in [("t1", "1"), ("t2", "1"), ("t1", "4"), ("t2", "4")] {
        let mirror = Mirror::of(&["t1", "t2"]).await;
        let (code, _, said) = mirror.apply(&["--all-datasets"]).output().await;
        assert_eq!((code, said.as_str()), (0, ""));
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
        mirror.service.stop().await;
    }
}

#[tokio::test]
async fn rows_that_no_export_can_make_fit_ask_for_full_exports_once() {
    let made = "create table sales.parents (id int primary key);
                create table sales.children (id int primary key, parent int);
                insert into sales.parents values (1); insert into sales.children values (1, 1);";
    let mirror = Mirror::made(&["children", "parents"], made).await;
    mirror.applies_all("all").await;
    mirror.target.run("alter table sales.children add foreign key (parent) references sales.parents").await;
    mirror.source.run("insert into sales.children values (2, 77)").await;
    let (mut running, _folder) = mirror.apply(&["--all-datasets", "--every", "100ms"]).spawn();
    let exports = "select count(*) from exports where export_type = 'full'";
    eventually("full exports", async || (mirror.source.one::<i64>(exports).await == 2).then_some(())).await;
    // Rounds pass.
    let rounds = "select count(distinct batch_id) from exports where export_type = 'delta'";
    let before: i64 = mirror.source.one(rounds).await;
    eventually("more rounds", async || (mirror.source.one::<i64>(rounds).await > before + 2).then_some(())).await;
    assert_eq!(mirror.source.one::<i64>(exports).await, 2);
    running.kill().await.unwrap();
    // Once they fit, the next call makes it good.
    mirror.source.run("insert into sales.parents values (77)").await;
    let (code, _, said) = mirror.apply(&["--all-datasets"]).output().await;
    assert_eq!(code, 0, "{said}");
    mirror.require_all_equal(&["children", "parents"]).await;
    mirror.service.stop().await;
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
        let (code, printed, said) = far(&[&call[..], &lanes].concat()).output().await;
        assert_eq!((code, said.as_str()), (0, ""), "{printed}");
        mirror.require_all_equal(&["items", "orders"]).await;
        let transactions = "select count(distinct xmin::text) from cdc_apply.positions";
        assert_eq!(mirror.target.one::<i64>(transactions).await, 1, "{printed}");
    };
    export_all(&mirror.service, "delta", json!({ "datasets": "*" })).await;
    apply().await;
    mirror.target.run("alter table sales.items add foreign key (\"order\") references sales.orders").await;
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
    mirror.service.stop().await;
}
