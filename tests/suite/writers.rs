//! Writers of tracked tables: what can't make a trigger fail, and what can.

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::catalog::{Catalog, Replica, export, post};
use crate::harness::{Database, SETTINGS_OF_VALUES, ends, eventually, refusal};
use crate::partitions::Tables;

/// Covers sessions that wrote before the rename, and replicated rows.
#[tokio::test]
async fn a_key_that_is_renamed_or_dropped_stops_no_writer_and_hides_nothing() {
    let tables = Tables::new().await;
    let mut session = tables.database.pool.acquire().await.unwrap();
    let write = |key: &str, dataset: &str, id: i32| {
        let [new, moved] = [id + 1, id + 2];
        format!(
            "insert into {dataset} select {new}, 'new'{0}; update {dataset} set note = 'x' where {key} = {id};
             update {dataset} set {key} = {moved} where {key} = {new}; delete from {dataset} where {key} = {moved};
             update {dataset} set note = note where {key} < 5",
            if dataset == "plain" { ", 'new'" } else { "" }
        )
    };
    for (dataset, id) in [("parted", 10), ("plain", 3)] {
        for role in ["origin", "replica"] {
            let replicated =
                |sql: &str| format!("set session_replication_role = {role}; {sql}; reset session_replication_role");
            let write_everywhere = async |session: &mut PgConnection, key: &str| {
                let sql = replicated(&write(key, dataset, id + 20));
                sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(session).await.unwrap();
                PgConnection::connect_with(&tables.database.options)
                    .await
                    .unwrap()
                    .execute(AssertSqlSafe(sql))
                    .await
                    .unwrap();
            };
            write_everywhere(&mut session, "id").await;
            tables.delta(dataset).await;

            // For a while: the log lacks what was written, and the catalog shows that.
            tables.run(&format!("alter table {dataset} rename id to number")).await;
            write_everywhere(&mut session, "number").await;
            let keyless = format!(
                "select count(*) from cdc_export.change_log where key = '' and table_oid = '{dataset}'::regclass"
            );
            assert_eq!(tables.database.one::<i64>(&keyless).await, 0, "no other key is logged in its place");
            tables.run(&format!("alter table {dataset} rename number to id")).await;
            write_everywhere(&mut session, "id").await;
            tables.refused(dataset, "partitions_changed").await;
            tables.heals(dataset, Some("partitions_changed")).await;
        }
        // For good.
        tables
            .run(&format!("alter table {dataset} rename id to number; delete from {dataset} where number = {id}"))
            .await;
        let (code, _, said) = tables.catalog.command(&tables.database, &["datasets", "check"]).await;
        assert!(code == 2 && said.contains(&format!("`cdc-export track {dataset}`")), "{code} {said}");
        let body = json!({ "dataset": dataset });
        assert_eq!(
            refusal(post(&tables.service, "/exports/delta", Some("a"), &body).await).await,
            (409, "not_tracked".to_owned())
        );
        let dataset_body: Value =
            tables.service.call("GET", &format!("/datasets/{dataset}"), &[]).await.json().await.unwrap();
        assert_eq!(dataset_body["ready"], false, "{dataset_body}");
        tables.catalog.track(&tables.database, dataset).await;
        let job = tables.ended("delta", dataset).await;
        assert_eq!(job["error"]["code"], "full_export_needed", "{job}");
        tables.heals(dataset, job["continuity"].as_str()).await;
    }
    // A column of the key is dropped: the dataset no longer fits its table.
    tables
        .run("alter table plain drop column number; insert into plain (code) values ('later'); delete from plain")
        .await;
    ends(tables.catalog.command(&tables.database, &["datasets", "check"]).await, 2, "plain: key");
}

/// A session keeps the plans of its triggers, and with them what they know of the columns.
#[tokio::test]
async fn a_session_that_wrote_before_the_key_was_altered_logs_the_key_as_it_is() {
    let database = Database::empty().await;
    let columns = "(id int not null, alt int not null, place int not null, unique (id, place), unique (alt, place))";
    database
        .run(&format!(
            "create table parted {columns} partition by list (place); create table part partition of parted for values in (1);
             create table plain {columns}; insert into parted values (50, 60, 1); insert into plain values (50, 60, 1)"
        ))
        .await;
    let of = |name: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\nkey = [\"id\", \"place\"]\n");
    let catalog = Catalog::of(&["parted", "plain"].map(of).concat());
    let service = catalog.serving(&database, &["parted", "plain"]).await;
    for dataset in ["parted", "plain"] {
        let source = format!("select id::text, alt, place from {dataset}");
        let replica = Replica { database: &database, source: &source, key: &["id", "place"] };
        let mut session = PgConnection::connect_with(&database.options).await.unwrap();
        let mut run = async |sql: String| {
            let done = session.execute(AssertSqlSafe(sql)).await;
            done.map(drop).unwrap_or_else(|refused| panic!("{dataset}: {refused}"));
        };
        run("set session_replication_role = replica".to_owned()).await;
        run(format!("insert into {dataset} (id, alt, place) values (1, 1001, 1)")).await;
        for (number, ddl) in [
            "alter table TABLE rename id to other; alter table TABLE rename alt to id; alter table TABLE rename other to alt",
            "alter table TABLE alter id type bigint",
            "alter table TABLE drop id; alter table TABLE add id bigint; update TABLE set id = alt + 5000;
             alter table TABLE alter id set not null; alter table TABLE add unique (id, place)",
        ]
        .into_iter()
        .enumerate()
        {
            database.run(&ddl.replace("TABLE", dataset)).await;
            replica.begin(&service, &export(&service, "full", dataset, "a").await).await;
            let id = 10 * (number + 2);
            for change in [
                format!("insert into {dataset} (id, alt, place) values ({id}, {id}000, 1), ({id} + 1, {id}001, 1)"),
                format!("update {dataset} set id = id + 100 where id = {id}; delete from {dataset} where id = {id} + 1"),
            ] {
                run(change).await;
                replica.apply(&service, &export(&service, "delta", dataset, "a").await).await;
                replica.require_equal().await;
            }
        }
    }
}

/// Such a foreign key updates in the name of the statement that changed what it points to, and shares its rows.
#[tokio::test]
async fn a_row_that_one_statement_updates_several_times_is_logged_as_gone_under_its_old_key() {
    let schema = "
        create table person (id int primary key);
        create table line (creator int references person on update cascade, person int references person on update cascade, n int,
          v text, primary key (person, n));
        create table edge (a int not null references person on update cascade, b int not null references person on update cascade,
          primary key (a, b));
        insert into person values (11), (1), (2); insert into line values (1, 1, 1, 'a'), (2, 1, 2, 'b'), (1, 2, 1, 'c');
        insert into edge values (1, 2), (11, 2), (2, 2)";
    let database = Database::empty_with(schema).await;
    let catalog = Catalog::of_tables(&["line", "edge"]);
    let service = catalog.serving(&database, &["line", "edge"]).await;
    for (dataset, key, change) in [
        ("line", &["person", "n"], "update person set id = 7 where id = 1"),
        // An edge has the old key of another one for a moment.
        ("edge", &["a", "b"], "update person set id = id + 10"),
    ] {
        let source = format!("table {dataset}");
        let replica = Replica { database: &database, source: &source, key };
        replica.begin(&service, &export(&service, "full", dataset, "a").await).await;
        database.run(change).await;
        replica.apply(&service, &export(&service, "delta", dataset, "a").await).await;
        replica.require_equal().await;
    }
}

/// The names of the triggers' own variables and relations, in the key and beside it.
#[tokio::test]
async fn columns_of_any_name_are_logged_right() {
    let names = [
        "rows", "tg_relid", "tg_op", "root", "now", "was", "key", "part1", "old_key", "missing", "keyed", "its", "old",
        "new", "nestloop", "found", "a\"b", "old rows",
    ];
    let database = Database::empty().await;
    let (first, second) = names.split_at(names.len() / 2);
    let catalog = Catalog::of_tables(&["first", "first_parted", "second", "second_parted"]);
    for (name, keys, others) in [("first", first, second), ("second", second, first)] {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let columns: String = keys.iter().map(|key| format!("{} int default 2, ", quoted(key))).collect();
        let others: String = others.iter().map(|other| format!("{} text default 'no', ", quoted(other))).collect();
        let last = quoted(keys[keys.len() - 1]);
        let keys: Vec<_> = keys.iter().map(|key| quoted(key)).collect();
        let columns = format!("n int, {columns}{others}primary key (n, {})", keys.join(", "));
        database
            .run(&format!(
                "create table {name} ({columns}); create table {name}_parted ({columns}) partition by range (n, {last});
                 create table {name}_all partition of {name}_parted default"
            ))
            .await;
        for table in [name.to_owned(), format!("{name}_parted")] {
            catalog.track(&database, &table).await;
            for role in ["origin", "replica"] {
                database
                    .run(&format!(
                        "set session_replication_role = {role}; insert into {table} (n) values (1), (3); update {table} set n = 5 where n = 3;
                         update {table} set {last} = 7 where n = 5; delete from {table} where n = 1; delete from {table};
                         reset session_replication_role"
                    ))
                    .await;
                let logged: Vec<String> = database
                    .one(&format!(
                        "select array_agg(format('%s %s %s', operation, key::json ->> 0, key::json ->> -1) order by sequence)
                         from cdc_export.change_log where table_oid = '{table}'::regclass"
                    ))
                    .await;
                let expected = ["I 1 2", "I 3 2", "U 5 2", "D 3 2", "U 5 7", "D 5 2", "D 1 2", "D 5 7"];
                assert_eq!(logged, expected, "{table} {role}");
                database.run("delete from cdc_export.change_log").await;
            }
        }
    }
}

#[tokio::test]
async fn no_setting_of_a_writer_s_session_refuses_a_write_or_changes_a_key() {
    let tables = Tables::new().await;
    let others = [
        "plpgsql.extra_errors = 'all'",
        "plpgsql.extra_warnings = 'all'",
        "plpgsql.variable_conflict = 'error'",
        "plpgsql.check_asserts = off",
        "plpgsql.print_strict_params = on",
        "search_path = ''",
        "default_transaction_isolation = serializable",
        "default_transaction_deferrable = on",
        "plan_cache_mode = force_generic_plan",
        "enable_hashjoin = off",
        "enable_material = off",
        "row_security = off",
        "session_preload_libraries = ''",
        "jit_above_cost = 0",
        "work_mem = '64kB'",
        "max_stack_depth = '100kB'",
        "backslash_quote = off",
        "escape_string_warning = on",
        "synchronize_seqscans = off",
        "default_tablespace = ''",
        "temp_tablespaces = ''",
        "check_function_bodies = off",
        "from_collapse_limit = 1",
        "join_collapse_limit = 1",
        "geqo_threshold = 2",
    ];
    for setting in SETTINGS_OF_VALUES.iter().chain(&others) {
        let mut session = PgConnection::connect_with(&tables.database.options).await.unwrap();
        session.execute(AssertSqlSafe(format!("set {setting}"))).await.unwrap();
        for role in ["origin", "replica"] {
            for (table, id, code) in [("public.plain", 21, ", 'c21'"), ("public.parted", 21, "")] {
                session
                    .execute(AssertSqlSafe(format!(
                        "set session_replication_role = {role}; insert into {table} select {id}{code};
                         update {table} set note = 'x' where id = {id}; update {table} set id = id + 1 where id = {id};
                         delete from {table} where id = {id} + 1"
                    )))
                    .await
                    .unwrap_or_else(|refused| panic!("{setting}, {role}, {table}: {refused}"));
            }
        }
        let logged: Vec<String> = tables
            .database
            .one(
                "with gone as (delete from cdc_export.change_log returning *)
                 select array_agg(operation::text || key order by table_oid::regclass::text, sequence) from gone",
            )
            .await;
        assert_eq!(logged, [["I21", "U21", "U22", "D21", "D22"]; 4].concat(), "{setting}");
    }
}

#[tokio::test]
async fn revoked_rights_on_the_log_are_reported_and_lose_no_change() {
    let tables = Tables::new().await;
    let owner: String = tables
        .database
        .one("select distinct proowner::regrole::text from pg_proc where proname like 'capture\\_%'")
        .await;
    let problems = async || {
        let dataset = tables.service.call("GET", "/datasets/plain", &[]).await.json::<Value>().await.unwrap();
        dataset["problems"].as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (number, right) in ["insert on cdc_export.change_log", "usage on schema cdc_export"].into_iter().enumerate() {
        tables.run(&format!("revoke {right} from {owner}")).await;
        let refused = sqlx::raw_sql("update plain set note = 'x' where id = 1").execute(&tables.database.pool).await;
        assert!(refused.is_err(), "{right}");
        let found = problems().await;
        assert!(found.len() == 1 && found[0].contains(&format!("to {owner}")), "{found:?}");
        let (code, _, said) = tables.catalog.command(&tables.database, &["datasets", "check"]).await;
        assert!(code == 2 && said.contains("plain: capture") && said.contains(&found[0]), "{right}: {code} {said}");
        let ready = async || {
            let health: Value = tables.service.call("GET", "/health/ready", &[]).await.json().await.unwrap();
            health["checks"]["datasets"].as_str().unwrap().contains("plain: writes to its table fail").then_some(())
        };
        eventually("readiness says it", ready).await;
        // The committed writes are exact all the same.
        assert_eq!(tables.delta("plain").await, Vec::<String>::new());

        tables
            .run(&format!("grant {right} to {owner}; update plain set note = '{right}' where id = {}", number + 2))
            .await;
        assert_eq!(problems().await, Vec::<String>::new());
        assert_eq!(tables.delta("plain").await, [format!("UPDATE {}", number + 2)]);
    }
}

/// So it is in a restored copy of the database, where the triggers' role may lack its rights.
#[tokio::test]
async fn a_trigger_on_another_table_than_its_own_logs_nothing_and_fails_nothing() {
    let database = Database::new_with(
        "create table plain (id int primary key);
         create table parts (id int primary key) partition by range (id);
         create table part partition of parts for values from (0) to (10)",
    )
    .await;
    let catalog = Catalog::of_tables(&["plain", "parts"]);
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    database
        .run(
            "create table copied_plain (like plain including all);
             create table copied_parts (like parts including all) partition by range (id);
             create table copied_part partition of copied_parts for values from (0) to (10);
             create table copied_more partition of copied_parts for values from (10) to (100);
             do $$ declare made text; begin
               for made in select pg_get_triggerdef(x.oid) from pg_trigger x
                   where x.tgrelid in ('plain'::regclass, 'parts'::regclass) and x.tgname like 'cdc\\_export%' loop
                 execute regexp_replace(made, ' ON public\\.', ' ON public.copied_');
               end loop;
             end $$;
             alter table copied_plain enable replica trigger cdc_export_s;
             revoke usage on schema cdc_export from public;
             do $$ declare definer text; begin
               select distinct quote_ident(pg_get_userbyid(proowner)) into definer from pg_proc where proname like 'capture\\_%';
               execute 'revoke usage on schema cdc_export from ' || definer;
             end $$",
        )
        .await;
    let before: i64 = database.one("select count(*) from cdc_export.change_log").await;
    for table in ["copied_plain", "copied_parts"] {
        for role in ["origin", "replica"] {
            let writes = format!(
                "begin; set local session_replication_role = {role}; insert into {table} values (1), (2);
                 update {table} set id = 11 where id = 1; delete from {table}; commit; truncate {table}"
            );
            database.run(&writes).await;
        }
    }
    assert_eq!(database.one::<i64>("select count(*) from cdc_export.change_log").await, before);
    for table in ["plain", "parts"] {
        let refused = sqlx::query(sqlx::AssertSqlSafe(format!("insert into {table} values (1)")));
        assert!(
            refused.execute(&database.pool).await.unwrap_err().to_string().contains("permission denied"),
            "{table}"
        );
    }
}
