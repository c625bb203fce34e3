//! Tables, keys and statements that only some versions of Postgres have, through a full export and deltas. On an older
//! version the test reports what did not run.

use crate::catalog::{Catalog, Replica, export};
use crate::harness::Database;

/// The first version of Postgres, a table, its key, and changes. The oldest version comes first.
type Case = (i32, &'static str, &'static [&'static str], &'static [&'static str]);

const MERGE: &str = "merge into t using (values (1, 'changed'), (2, null), (9, 'new')) as s (id, note) on t.id = s.id
     when matched and s.note is null then delete when matched then update set note = s.note, id = t.id + 20
     when not matched then insert (id, note) values (s.id, s.note)";

const CASES: [Case; 9] = [
    // Multiranges.
    (
        14,
        "create table t (id int primary key, open_at tsmultirange, seats int4multirange not null default '{}');
         insert into t values (1, '{[2026-01-01,2026-02-01),[2026-03-01,)}', '{[1,5),[7,9)}'), (2, null, '{}')",
        &["id"],
        &["update t set seats = seats + '{[5,7)}' where id = 1; insert into t values (3, '{}', '{(,)}'); delete from t where id = 2"],
    ),
    (
        15,
        "create table t (id int primary key, note text); insert into t select n, 'n' || n from generate_series(1, 5) n",
        &["id"],
        &[MERGE],
    ),
    (
        15,
        "create table t (id int primary key, note text) partition by range (id);
         create table low partition of t for values from (0) to (10); create table high partition of t for values from (10) to (100);
         insert into t select n, 'n' || n from generate_series(1, 5) n",
        &["id"],
        &[MERGE],
    ),
    // Such an index tells rows apart as every other one does, because a key's columns are NOT NULL.
    (
        15,
        "create table t (code text not null, note text, unique nulls not distinct (code)); insert into t values ('a', 'x'), ('b', null)",
        &["code"],
        &["update t set code = 'c' where code = 'a'; delete from t where code = 'b'"],
    ),
    // A merge that returns rows, and deletes what its source lacks.
    (
        17,
        "create table t (id int primary key, note text); insert into t select n, 'n' || n from generate_series(1, 6) n",
        &["id"],
        &["with done as (
             merge into t using (values (1, 'changed'), (9, 'new')) as s (id, note) on t.id = s.id
             when matched then update set note = s.note when not matched then insert values (s.id, s.note)
             when not matched by source and t.id > 3 then delete when not matched by source then update set id = t.id + 100
             returning merge_action(), t.id)
           select count(*) from done"],
    ),
    // An identity column of a partitioned table.
    (
        17,
        "create table t (id bigint generated always as identity primary key, note text) partition by range (id);
         create table low partition of t for values from (0) to (4); create table high partition of t for values from (4) to (100);
         insert into t (note) select 'n' || n from generate_series(1, 6) n",
        &["id"],
        &[
            "insert into t (note) values ('through'); insert into high (note) values ('directly'); delete from low where id = 1",
            "update t set id = default where id = 2",
        ],
    ),
    // A key of a builtin collation.
    (
        17,
        "create table t (name text collate pg_c_utf8 primary key, note text); insert into t values ('Ä', 'x'), ('a', null), ('ß', 'y')",
        &["name"],
        &["update t set name = lower(name); insert into t values ('Ä', 'again'); delete from t where name = 'ß'"],
    ),
    // Statements that return old and new rows.
    (
        18,
        "create table t (id int primary key, note text); insert into t select n, 'n' || n from generate_series(1, 6) n",
        &["id"],
        &["with moved as (update t set id = id + 10 where id < 3 returning old.id as was, new.id as becomes),
             gone as (delete from t where id = 5 returning old.*), made as (insert into t values (1, 'new') on conflict do nothing returning new.id)
           select count(*) from moved, gone, made"],
    ),
    // A temporal key.
    (
        18,
        "create extension btree_gist;
         create table t (room int, during daterange, guest text, primary key (room, during without overlaps));
         insert into t values (1, '[2026-01-01,2026-02-01)', 'a'), (1, '[2026-02-01,2026-03-01)', 'b'), (2, '[2026-01-01,)', 'c')",
        &["room", "during"],
        &[
            "update t set guest = 'd' where guest = 'a'; delete from t where guest = 'b'; insert into t values (1, '[2026-02-01,2026-02-10)', 'e')",
            "update t set during = '[2026-05-01,2026-06-01)' where guest = 'c'",
        ],
    ),
];

/// The consumer of the dataset `t` has what the table has: after each change its replica equals the table. Each change
/// is a statement of its own.
#[tokio::test]
async fn what_only_some_versions_have_is_exact() {
    for (since, table, key, changes) in CASES {
        let database = Database::empty().await;
        if database.postgres_version().await < since {
            eprintln!("did not run: this Postgres is older than {since}");
            break;
        }
        database.run(table).await;
        let catalog = Catalog::of(&format!("[[dataset]]\nname = \"t\"\ntable = \"t\"\nkey = {key:?}\n"));
        let service = catalog.serving(&database, &["t"]).await;
        let replica = Replica { database: &database, source: "table t", key };
        replica.begin(&service, &export(&service, "full", "t", "a").await).await;
        for change in changes {
            database.run(change).await;
            let delta = export(&service, "delta", "t", "a").await;
            assert_ne!(delta["rowsExported"], 0, "{change}");
            replica.apply(&service, &delta).await;
            replica.require_equal().await;
        }
    }
}
