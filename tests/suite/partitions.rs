//! Changes of a table in the catalog: partitions that are attached and detached, names that move, parents, emptied
//! logs. Each is exported exactly, or refused by name.

use serde_json::{Value, json};

use crate::catalog::{Catalog, Replica, ended, export};
use crate::harness::{Csv, Database, Service, ends, needs_full};

const PARTED: &str = "
    create table parted (id int primary key, note text) partition by range (id);
    create table low partition of parted for values from (0) to (100);
    create table high partition of parted for values from (100) to (200);
    insert into parted select n, 'n' || n from generate_series(0, 190, 10) n";
const PLAIN: &str = "create table plain (id int primary key, code text not null unique, note text);
    insert into plain select n, 'c' || n, 'n' || n from generate_series(1, 9) n";
const BOTH: &str = "
    [[dataset]]
    name = \"parted\"
    table = \"parted\"

    [[dataset]]
    name = \"plain\"
    table = \"plain\"
";

/// Both tables, tracked, with the consumer `a` of both that has everything.
pub(crate) struct Tables {
    pub(crate) database: Database,
    pub(crate) catalog: Catalog,
    pub(crate) service: Service,
}

impl Tables {
    pub(crate) async fn new() -> Tables {
        let database = Database::empty_with(&format!("{PARTED}; {PLAIN}")).await;
        let catalog = Catalog::of(BOTH);
        let service = catalog.serving(&database, &["parted", "plain"]).await;
        for dataset in ["parted", "plain"] {
            export(&service, "full", dataset, "a").await;
        }
        Tables { database, catalog, service }
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.database.run(sql).await;
    }

    pub(crate) async fn ended(&self, export_type: &str, dataset: &str) -> Value {
        ended(&self.service, &format!("/exports/{export_type}"), Some("a"), json!({ "dataset": dataset })).await
    }

    /// A delta that is refused with the word: its detail.
    pub(crate) async fn refused(&self, dataset: &str, word: &str) -> String {
        let job = self.ended("delta", dataset).await;
        needs_full(&job, word);
        job["error"]["detail"].as_str().unwrap().to_owned()
    }

    /// A delta that nothing stands in the way of: operations and keys, sorted.
    pub(crate) async fn delta(&self, dataset: &str) -> Vec<String> {
        let job = export(&self.service, "delta", dataset, "a").await;
        assert_eq!(job["continuity"], Value::Null, "{dataset}: {job}");
        let rows = Csv::read(&self.service.path(&job)).rows;
        let mut rows: Vec<_> = rows.iter().map(|row| format!("{} {}", row[0], row[1])).collect();
        rows.sort_unstable();
        rows
    }

    /// A delta is refused with the word, and a full export heals.
    async fn heals_after(&self, dataset: &str, word: &str) {
        self.refused(dataset, word).await;
        self.heals(dataset, Some(word)).await;
    }

    /// A full export heals: it names the word, and afterwards nothing is due.
    pub(crate) async fn heals(&self, dataset: &str, word: Option<&str>) {
        let job = export(&self.service, "full", dataset, "a").await;
        assert_eq!(job["continuity"], json!(word), "{dataset}: {job}");
        assert_eq!(self.delta(dataset).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_new_partition_needs_neither_track_nor_a_full_export() {
    let tables = Tables::new().await;
    let schema = "
        create table more partition of parted for values from (200) to (300); insert into parted values (201, 'through');
        insert into more values (202, 'directly'), (203, 'gone'); delete from more where id = 203; update parted set id = 204 where id = 0";
    tables.run(schema).await;
    assert_eq!(tables.delta("parted").await, ["DELETE 0", "DELETE 203", "INSERT 201", "INSERT 202", "INSERT 204"]);
    tables.run("update more set note = 'x' where id = 201").await;
    assert_eq!(tables.delta("parted").await, ["UPDATE 201"]);
    // The TRUNCATE of a partition is noticed although no trigger is there for it.
    tables.run("truncate more").await;
    tables.heals_after("parted", "truncated").await;
    // One partition is attached empty, and another one with rows that were there before.
    let schema = "
        create table later (like parted including all); alter table parted attach partition later for values from (300) to (400);
        insert into later values (301, 'x')";
    tables.run(schema).await;
    assert_eq!(tables.delta("parted").await, ["INSERT 301"]);
    tables.run("create table rest partition of parted default; insert into parted values (500, 'x'), (600, 'x')").await;
    assert_eq!(tables.delta("parted").await, ["INSERT 500", "INSERT 600"]);
    let changes = "
        begin; create table fifth (like parted including all); insert into fifth select * from rest where id < 600;
        delete from rest where id < 600; alter table parted attach partition fifth for values from (500) to (600); commit";
    tables.run(changes).await;
    assert_eq!(tables.delta("parted").await, ["UPDATE 500"], "it was logged as gone, and is there");

    // Rows that nobody saw come.
    let schema = "
        create table loaded (like parted including all); insert into loaded values (401, 'before');
        alter table parted attach partition loaded for values from (400) to (500); insert into loaded values (402, 'after')";
    tables.run(schema).await;
    tables.refused("parted", "partitions_changed").await;
    tables.catalog.track(&tables.database, "parted").await;
    tables.heals_after("parted", "partitions_changed").await;
    // With its trigger, the log reports deletions of the partition, whatever happens to its file.
    tables.run("vacuum full loaded").await;
    tables.run("delete from loaded where id = 401").await;
    assert_eq!(tables.delta("parted").await, ["DELETE 401"]);
    tables.run("truncate loaded").await;
    tables.heals_after("parted", "truncated").await;
    tables.run("drop table later").await;
    tables.heals_after("parted", "partitions_changed").await;
}

/// An incremental export delivers no deletions, so it doesn't heal a truncate.
#[tokio::test]
async fn a_truncate_that_only_a_file_tells_stays_due_after_an_incremental() {
    let tables = Tables::new().await;
    let statements =
        "create table more partition of parted for values from (200) to (300); insert into more values (201, 'x')";
    tables.run(statements).await;
    assert_eq!(tables.delta("parted").await, ["INSERT 201"]);
    tables.run("truncate more").await;
    tables.refused("parted", "truncated").await;
    for id in [10, 20] {
        tables.run(&format!("update parted set note = 'x' where id = {id}")).await;
        let job = export(&tables.service, "incremental", "parted", "a").await;
        assert_eq!((&job["continuity"], &job["rowsExported"]), (&json!("truncated"), &json!(1)), "{job}");
        tables.refused("parted", "truncated").await;
    }
    tables.heals("parted", Some("truncated")).await;
    let job = export(&tables.service, "incremental", "parted", "a").await;
    assert_eq!(job["continuity"], Value::Null, "{job}");
}

#[tokio::test]
async fn a_key_s_name_on_another_column_for_a_while_is_not_missed() {
    let tables = Tables::new().await;
    for dataset in ["parted", "plain"] {
        tables.run(&format!("alter table {dataset} add n int not null default 5")).await;
        assert_eq!(tables.delta(dataset).await, Vec::<String>::new());
        let statements = format!(
            "begin; alter table {dataset} rename id to was; alter table {dataset} rename n to id;
             update {dataset} set note = 'x' where was < 60;
             alter table {dataset} rename id to n; alter table {dataset} rename was to id; commit"
        );
        tables.run(&statements).await;
        tables.heals_after(dataset, "partitions_changed").await;
    }
    // A partition's own columns are looked at: what only its root's say is no rename.
    tables.run("grant select (id) on parted to public; alter table parted rename note to called").await;
    assert_eq!(tables.delta("parted").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_partition_that_the_role_may_not_read_by_itself_needs_no_full_export() {
    let tables = Tables::new().await;
    let Tables { database, catalog, service } = tables;
    service.stop().await;
    let role = database.role().await;
    let statements = format!(
        "grant usage on schema public, cdc_export to {role};
         grant select on parted, plain to {role}; grant select, insert, update, delete on watermarks to {role};
         grant select, insert, update, delete on all tables in schema cdc_export to {role};
         grant usage on all sequences in schema public, cdc_export to {role}"
    );
    database.run(&statements).await;
    let service = catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass")).service().await;
    let tables = Tables { database, catalog, service };
    for dataset in ["parted", "plain"] {
        export(&tables.service, "full", dataset, "a").await;
    }
    tables.run("create table more partition of parted for values from (200) to (300)").await;
    assert_eq!(tables.delta("parted").await, Vec::<String>::new());
    let statements = "create table rest partition of parted default; insert into parted values (201, 'x'), (500, 'y'); create schema apart; alter table rest set schema apart";
    tables.run(statements).await;
    assert_eq!(tables.delta("parted").await, ["INSERT 201", "INSERT 500"]);
    // This partition has rows all the same.
    let schema = "
        create table loaded (like parted including all); insert into loaded values (401, 'before');
        alter table parted attach partition loaded for values from (400) to (500); insert into loaded values (402, 'after')";
    tables.run(schema).await;
    tables.heals_after("parted", "partitions_changed").await;
}

#[tokio::test]
async fn a_partition_s_own_triggers_of_before_hide_nothing() {
    let tables = Tables::new().await;
    tables.run("update plain set id = id + 300; alter table parted add code text").await;
    let changes = "
        alter table plain drop constraint plain_code_key; alter table plain alter code drop not null; delete from plain;
        alter table parted attach partition plain for values from (300) to (400); insert into parted values (301, 'x')";
    tables.run(changes).await;
    assert_eq!(tables.delta("parted").await, ["INSERT 301"]);
    tables.run("truncate plain").await;
    tables.heals_after("parted", "truncated").await;
    let changes = "
        do $$ begin
          execute (select format('alter table %s disable trigger %I', x.tgrelid::regclass, x.tgname) from pg_trigger x
            where x.tgrelid = 'plain'::regclass and x.tgname like 'cdc\\_export\\_r%');
        end $$";
    tables.run(changes).await;
    let detail = tables.refused("parted", "trigger_missing").await;
    assert!(detail.contains("`cdc-export track parted`"), "{detail}");
    tables.catalog.track(&tables.database, "parted").await;
    tables.heals_after("parted", "trigger_changed").await;

    // Detached and tracked by itself, it takes nothing from where it was.
    tables.run("alter table parted detach partition plain").await;
    tables.heals_after("parted", "partitions_changed").await;
    tables.catalog.track(&tables.database, "plain").await;
    tables.run("truncate plain; update parted set note = 'x' where id = 10").await;
    assert_eq!(tables.delta("parted").await, ["UPDATE 10"]);
    tables.run("truncate low").await;
    tables.refused("parted", "truncated").await;
}

#[tokio::test]
async fn a_tracked_root_that_is_another_s_partition_for_a_while_loses_nothing() {
    let tables = Tables::new().await;
    let schema = "
        create table whole (id int not null, note text) partition by range (id);
        alter table whole attach partition parted for values from (0) to (1000);
        update whole set note = 'through' where id = 10; update parted set note = 'beside' where id = 20; delete from low where id = 30";
    tables.run(schema).await;
    let detail = tables.refused("parted", "trigger_missing").await;
    assert!(detail.contains("`cdc-export track parted`"), "{detail}");
    ends(tables.catalog.command(&tables.database, &["track", "parted"]).await, 1, "name `public.whole`");
    tables.run("alter table whole detach partition parted").await;
    assert_eq!(tables.delta("parted").await, ["DELETE 30", "UPDATE 10", "UPDATE 20"]);
    // Changes that it lost there are reported too: columns were touched and files replaced, as after an ALTER TABLE.
    let changes = "alter table whole attach partition parted for values from (0) to (1000); truncate whole;
                   alter table whole detach partition parted";
    tables.run(changes).await;
    tables.refused("parted", "column_retyped").await;
}

#[tokio::test]
async fn a_tracked_root_is_attached_to_another_tracked_one() {
    let tables = Tables::new().await;
    let schema = "
        create table whole (id int not null primary key, note text) partition by range (id);
        create table other partition of whole for values from (1000) to (2000); insert into whole values (1000, 'other')";
    tables.run(schema).await;
    let whole = Catalog::of("[[dataset]]\nname = \"whole\"\ntable = \"whole\"\n");
    whole.track(&tables.database, "whole").await;
    let service = whole.start(&tables.database).service().await;
    export(&service, "full", "whole", "a").await;
    tables.run("alter table whole attach partition parted for values from (0) to (1000)").await;
    let job = ended(&service, "/exports/delta", Some("a"), json!({ "dataset": "whole" })).await;
    assert_eq!(job["continuity"], "partitions_changed", "{job}");
    assert_eq!(export(&service, "full", "whole", "a").await["rowsExported"], 21);
    let changes = "update whole set note = 'through' where id = 10; update parted set note = 'beside' where id = 20;
                   delete from low where id = 30";
    tables.run(changes).await;
    assert_eq!(export(&service, "delta", "whole", "a").await["rowsExported"], 3);
    service.stop().await;
    tables.run("alter table whole detach partition parted").await;
    assert_eq!(tables.delta("parted").await, ["DELETE 30", "UPDATE 10", "UPDATE 20"]);
}

#[tokio::test]
async fn the_key_that_is_logged_is_the_one_that_counts_whatever_the_table_is_called() {
    let tables = Tables::new().await;
    let by_code = BOTH.replace("table = \"plain\"", "table = \"plain\"\n    key = [\"code\"]");
    // Tracks `plain` by its code, and renames it. Tracks another `plain` by its id. The service does not read this
    // file.
    Catalog::of(&by_code).track(&tables.database, "plain").await;
    tables.run(&format!("alter table plain rename to moved; {PLAIN}")).await;
    tables.catalog.track(&tables.database, "plain").await;
    tables.run("alter table plain rename to other; alter table moved rename to plain").await;
    // The log has codes.
    let job = tables.ended("full", "plain").await;
    assert_eq!(job["error"]["code"], "not_tracked", "{job}");
    tables.catalog.track(&tables.database, "plain").await;
    export(&tables.service, "full", "plain", "a").await;
    let replica = Replica { database: &tables.database, source: "select * from plain", key: &["id"] };
    let full = export(&tables.service, "full", "plain", "b").await;
    replica.begin(&tables.service, &full).await;
    tables.run("update plain set note = 'x' where id = 3; delete from plain where id = 4; update plain set id = 50 where id = 5").await;
    assert_eq!(tables.delta("plain").await, ["DELETE 4", "DELETE 5", "UPDATE 3", "UPDATE 50"]);
    let delta = export(&tables.service, "delta", "plain", "b").await;
    replica.apply(&tables.service, &delta).await;
    replica.require_equal().await;
}

#[tokio::test]
async fn what_is_written_through_a_parent_for_a_while_is_not_missed() {
    let tables = Tables::new().await;
    for (comes, goes) in [
        (
            "create table parent (id int, note text); alter table plain inherit parent",
            "alter table plain no inherit parent",
        ),
        // Not the key alone can be a parent's.
        ("create table parent (note text); alter table plain inherit parent", "alter table plain no inherit parent"),
        (
            "create table parent (id int not null, code text not null, note text) partition by range (id);
             alter table parent attach partition plain for values from (0) to (1000)",
            "alter table parent detach partition plain",
        ),
    ] {
        tables.run(&format!("{comes}; update parent set note = note || '!'; {goes}; drop table parent")).await;
        tables.heals_after("plain", "partitions_changed").await;
    }
    // Other changes of a column are no reason for a full export.
    let statements = "
        alter table plain alter note set default 'x', alter note set not null; alter table plain alter note set default 'y';
        alter table plain add more int default 7; alter table plain alter code set statistics 7; analyze plain";
    tables.run(statements).await;
    assert_eq!(tables.delta("plain").await, Vec::<String>::new());
    // A column without a default, since ALTER TYPE makes a default anew.
    for alter in ["alter code type text collate \"C\"", "alter code set compression pglz"] {
        // Postgres has it since 14.
        if !alter.contains("compression") || tables.database.postgres_version().await >= 14 {
            tables.run(&format!("alter table plain {alter}")).await;
            assert_eq!(tables.delta("plain").await, Vec::<String>::new(), "{alter}");
        }
    }
    // A child has rows of its own while it is one.
    tables.run("create table kid () inherits (plain); insert into kid values (77, 'k', 'k', 7)").await;
    for export_type in ["full", "delta"] {
        assert_eq!(tables.ended(export_type, "plain").await["error"]["code"], "dataset_mismatch");
    }
    tables.run("alter table kid no inherit plain").await;
    assert_eq!(tables.delta("plain").await, Vec::<String>::new());
}

/// A column tells by itself why it was touched.
#[tokio::test]
async fn a_change_of_another_column_hides_nothing_that_came_through_a_parent() {
    let tables = Tables::new().await;
    for (n, beside) in [
        "grant select (code) on plain to public",
        "alter table plain alter code set default 'y'",
        "alter table plain add more int",
        "alter table plain drop more",
    ]
    .into_iter()
    .enumerate()
    {
        let statements = format!(
            "create table parent (note text); alter table plain inherit parent; delete from parent where note = 'n{}';
             alter table plain no inherit parent; drop table parent; {beside}",
            n + 1
        );
        tables.run(&statements).await;
        tables.heals_after("plain", "partitions_changed").await;
    }
}

#[tokio::test]
async fn what_a_crash_empties_is_not_captured() {
    let tables = Tables::new().await;
    for (dataset, unlogged, logged) in [
        ("plain", "alter table plain set unlogged", "alter table plain set logged"),
        ("parted", "alter table high set unlogged", "alter table high set logged"),
        ("parted", "alter table cdc_export.change_log set unlogged", "alter table cdc_export.change_log set logged"),
    ] {
        tables.run(unlogged).await;
        tables.refused(dataset, "trigger_missing").await;
        let full = export(&tables.service, "full", dataset, "a").await;
        assert_eq!(full["continuity"], "trigger_missing", "{full}");
        tables.run(logged).await;
        // The partition may have been emptied since.
        tables.heals_after(dataset, "trigger_changed").await;
    }
    tables.run("alter table high set unlogged").await;
    ends(tables.catalog.command(&tables.database, &["track", "parted"]).await, 1, "unlogged");
}

/// Functions as another version would have made them, and positions as its processes would have saved them.
const OTHER_TEXT: &str = r#"do $$ declare made text; begin
    for made in select pg_get_functiondef(p.oid) from pg_proc p where p.proname like 'capture\_%' loop
      execute regexp_replace(made, '-- cdc-export \d+ ', '-- cdc-export 0 ');
    end loop;
  end $$;
  update watermarks w set guard_state = jsonb_set(w.guard_state, '{functions}', to_jsonb((
    select md5(string_agg(format('%s %s', p.oid, p.xmin), ',' order by p.oid)) from pg_proc p
    where p.oid in (select x.tgfoid from pg_trigger x where x.tgrelid = w.table_oid))))"#;

#[tokio::test]
async fn an_upgrade_of_the_triggers_costs_nobody_a_full_export() {
    let Tables { database, catalog, service } = Tables::new().await;
    for dataset in ["plain", "parted"] {
        export(&service, "full", dataset, "a").await;
    }
    service.stop().await;
    database.run(OTHER_TEXT).await;
    let statements = "update plain set note = 'before' where id = 1; update parted set note = 'before' where id = 10";
    database.run(statements).await;
    let service = catalog.start(&database).service().await;
    let renewed = "select bool_and(prosrc not like '%-- cdc-export 0 %') from pg_proc where proname like 'capture\\_%'";
    assert!(database.one::<bool>(renewed).await);
    database.run("delete from plain where id = 3").await;
    for (dataset, rows) in [("plain", 2), ("parted", 1)] {
        let job = export(&service, "delta", dataset, "a").await;
        assert_eq!((&job["continuity"], &job["rowsExported"]), (&Value::Null, &json!(rows)), "{job}");
    }
    let twice = "select count(*) from (select from cdc_export.change_log group by xid, operation, key having count(*) > 1) twice";
    assert_eq!(database.one::<i64>(twice).await, 0);
}

#[tokio::test]
async fn what_a_superuser_does_to_the_log_and_the_functions_is_seen() {
    let tables = Tables::new().await;
    tables.run("update plain set note = 'lost' where id = 1; truncate cdc_export.change_log").await;
    tables.heals_after("plain", "log_expired").await;
    tables.heals("parted", Some("log_expired")).await;

    let function = "(select p.oid from pg_proc p join pg_trigger x on x.tgfoid = p.oid
        where x.tgrelid = 'plain'::regclass and x.tgname = 'cdc_export_u')";
    let was: String = tables.database.one(&format!("select pg_get_functiondef({function})")).await;
    let name: String = tables.database.one(&format!("select {function}::regproc::text")).await;
    let nothing =
        format!("create or replace function {name}() returns trigger language plpgsql as 'begin return null; end'");
    tables.run(&format!("{nothing}; update plain set note = 'unseen' where id = 2; {was}")).await;
    tables.heals_after("plain", "trigger_changed").await;

    tables.run("update pg_class set relhastriggers = false where oid = 'plain'::regclass").await;
    tables.refused("plain", "trigger_missing").await;
    tables.run("update pg_class set relhastriggers = true where oid = 'plain'::regclass").await;
    assert_eq!(tables.delta("plain").await, Vec::<String>::new());
}

/// A position that was saved while the table had no partition knows none, and that is no error.
#[tokio::test]
async fn a_table_that_had_no_partition_for_a_while_is_exported() {
    let Tables { database, catalog: _catalog, service } = Tables::new().await;
    database.run("drop table low; drop table high").await;
    export(&service, "full", "parted", "a").await;
    assert_eq!(export(&service, "delta", "parted", "a").await["rowsExported"], 0);
    let statements =
        "create table again partition of parted for values from (0) to (100); insert into parted values (7, 'n')";
    database.run(statements).await;
    let delta = export(&service, "delta", "parted", "a").await;
    assert_eq!((&delta["rowsExported"], &delta["continuity"]), (&json!(1), &Value::Null), "{delta}");
    assert_eq!(export(&service, "full", "parted", "a").await["rowsExported"], 1);
    // Makes positions look as earlier versions saved them.
    let statements =
        "update watermarks set guard_state = jsonb_set(guard_state, '{touches}', 'null') where dataset = 'parted'";
    database.run(statements).await;
    assert_eq!(export(&service, "delta", "parted", "a").await["rowsExported"], 0);
}
