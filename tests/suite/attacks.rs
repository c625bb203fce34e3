//! Attacks by somebody who may write to a table, or create objects in the database. None of them gains a right.

mod attacker;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::attacks::attacker::Attacker;
use crate::catalog::{Catalog, export};
use crate::harness::{Csv, Database, HANG_TIMEOUT, Start, ends, refusal, until};

/// Types of a writer's temporary schema under the names that a trigger may say.
const TEMPORARY_TYPES: [&str; 12] =
    ["text", "varchar", "\"char\"", "jsonb", "json", "oid", "int2", "smallint_", "regclass", "name", "xid8", "bool"];

#[tokio::test]
async fn a_writers_temporary_objects_are_never_used() {
    let schema = "
        create table parts (a int, b text, primary key (a, b)) partition by list (a);
        create table part_1 partition of parts for values in (1); create table part_2 partition of parts for values in (2)";
    let database = Database::new_with(schema).await;
    Catalog::of("[[dataset]]\nname = \"parts\"\ntable = \"parts\"\n").track(&database, "parts").await;

    let attacker = Attacker::new(&database).await;
    let statements = format!(
        "grant all on users, parts, part_1 to {0}; grant usage on all sequences in schema public to {0}",
        attacker.name
    );
    database.run(&statements).await;
    for (n, name) in TEMPORARY_TYPES.iter().enumerate() {
        for of in ["pg_catalog.varchar", "pg_catalog.jsonb", "pg_catalog.int8"] {
            attacker.makes_a_trap(&format!("pg_temp.own_{n}(value {of}) returns pg_catalog.bool"), "true").await;
        }
        let domain = format!("create domain pg_temp.{name} as pg_catalog.varchar check (pg_temp.own_{n}(value))");
        attacker.runs(&domain).await;
    }
    attacker.makes_a_trap("pg_temp.concat(variadic pg_catalog.text[]) returns pg_catalog.text", "'x'").await;
    attacker.runs("create temporary table change_log (n int); create temporary table pg_attribute (n int)").await;
    let changes = "
        insert into public.users (name, email, created_at, updated_at) values ('a', 'a', now(), now()), ('b', 'b', now(), now());
        update public.users set name = 'c'; update public.users set id = id + 100 where email = 'a';
        delete from public.users where email = 'b'; truncate public.users;
        insert into public.parts values (1, 'x'), (1, 'y'); update public.parts set b = 'z' where b = 'x';
        update public.parts set a = 2 where b = 'y'; delete from public.parts; truncate public.parts; truncate public.part_1";
    attacker.runs(changes).await;
    attacker.assert_gained_nothing(&database).await;
}

/// Functions of the triggers' text, each with its arguments and what it returns, and a value of that.
const NAMED_FUNCTIONS: [(&str, &str, &str); 8] = [
    ("concat(text)", "text", "'x'"),
    ("concat(bigint)", "text", "'x'"),
    ("concat(public.users)", "text", "'x'"),
    ("current_setting(text)", "text", "'on'"),
    ("set_config(text, text, boolean)", "text", "'on'"),
    ("pg_column_size(public.users)", "integer", "1"),
    ("jsonb_build_array(text, text)", "jsonb", "'[]'"),
    ("pg_partition_ancestors(regclass)", "setof regclass", "next null"),
];

/// The types of the operands of the triggers' operators.
const OPERANDS: [(&str, &str); 8] = [
    ("text", "text"),
    ("bigint", "integer"),
    ("bigint", "bigint"),
    ("integer", "integer"),
    ("smallint", "integer"),
    ("oid", "oid"),
    ("oid", "bigint"),
    ("name", "name"),
];

/// The triggers' functions run under the writer's search_path, which may begin with a schema of his own.
#[tokio::test]
async fn what_a_writer_puts_before_postgres_s_own_is_never_called() {
    let changes = "
        create table parts (a int, b text, at timestamptz, primary key (a, b)) partition by list (a);
        create table part_1 partition of parts for values in (1); create table part_2 partition of parts for values in (2)";
    let database = Database::new_with(changes).await;
    Catalog::of("[[dataset]]\nname = \"parts\"\ntable = \"parts\"\n").track(&database, "parts").await;
    let attacker = Attacker::new(&database).await;
    let own = attacker.name.clone();
    let statements =
        format!("grant all on users, parts, part_1 to {own}; grant usage on all sequences in schema public to {own}");
    database.run(&statements).await;
    for (function, of, value) in NAMED_FUNCTIONS {
        attacker.makes_a_trap(&format!("{own}.{function} returns {of}"), value).await;
    }
    for (n, (left, right)) in OPERANDS.iter().enumerate() {
        attacker.makes_a_trap(&format!("{own}.compared_{n}({left}, {right}) returns boolean"), "true").await;
        for operator in ["=", "<>", "<", "<=", ">", ">="] {
            attacker
                .runs(&format!(
                    "create operator {own}.{operator} (leftarg = {left}, rightarg = {right}, function = {own}.compared_{n})"
                ))
                .await;
        }
    }
    for name in TEMPORARY_TYPES {
        attacker.makes_a_trap(&format!("{own}.holds(value pg_catalog.varchar) returns pg_catalog.bool"), "true").await;
        attacker.runs(&format!("create domain {own}.{name} as pg_catalog.varchar check ({own}.holds(value))")).await;
    }
    attacker.runs(&format!("create table {own}.change_log (n int); create table {own}.pg_attribute (n int)")).await;
    attacker.runs(&format!("grant usage on schema {own} to public; set search_path = {own}, pg_catalog")).await;
    let trapped = attacker.tries("select concat('a'::pg_catalog.text)").await;
    assert!(trapped.is_err(), "a trap that holds nobody proves nothing");
    let changes = "
        insert into public.users (name, email, created_at, updated_at) values ('a', 'a', now(), now()), ('b', 'b', now(), now());
        update public.users set name = 'c'; update public.users set id = id operator(pg_catalog.+) 100;
        update public.users set id = 7 where email operator(pg_catalog.=) 'a';
        delete from public.users where email operator(pg_catalog.=) 'b'; truncate public.users;
        insert into public.parts values (1, 'x'), (1, 'y'); update public.parts set b = 'z' where b operator(pg_catalog.=) 'x';
        update public.parts set a = 2 where b operator(pg_catalog.=) 'y'; delete from public.parts; truncate public.parts;
        truncate public.part_1";
    attacker.runs(changes).await;
    let logged: i64 = database.one("select count(*) from cdc_export.change_log where operation = 'D'").await;
    assert_eq!(logged, 8, "of users two keys, a key and a row; of parts a key, a row that moved, and two rows");
    attacker.assert_gained_nothing(&database).await;
}

#[tokio::test]
async fn casts_of_a_tables_owner_are_not_run_by_its_triggers() {
    let database = Database::new().await;
    let owner = Attacker::new(&database).await;
    let schema = owner.name.clone();
    owner
        .runs(&format!(
            "set search_path = {schema}; create type mood as enum ('sad', 'ok'); create domain ours as mood"
        ))
        .await;
    for (of, to) in [("mood", "text"), ("mood", "json"), ("mood", "jsonb"), ("mood", "varchar")] {
        owner.makes_a_trap(&format!("to_{to}(value {of}) returns {to}"), "'1'").await;
        owner.runs(&format!("create cast ({of} as {to}) with function to_{to}({of}) as implicit")).await;
    }
    owner.runs("create table kept (m mood, n int, moods mood[], o ours, primary key (m, n))").await;
    owner.makes_a_trap("row_to(value kept) returns text", "'1'").await;
    owner.runs("create cast (kept as text) with function row_to(kept) as implicit").await;
    let catalog = Catalog::of(&format!("[[dataset]]\nname = \"kept\"\ntable = \"{schema}.kept\"\n"));
    catalog.track(&database, "kept").await;
    let changes = "insert into kept values ('sad', 1, '{ok,sad}', 'ok'), ('ok', 2, '{ok}', 'sad');
                   update kept set m = 'ok'; update kept set n = 3 where n = 1; delete from kept";
    owner.runs(changes).await;
    let logged: i64 = database.one("select count(*) from cdc_export.change_log").await;
    assert_eq!(logged, 9, "two inserted, three updated, two keys given up, two deleted");
    owner.assert_gained_nothing(&database).await;
}

/// The role's own path, in which others have functions, is searched to read such a table, and by no other statement.
#[tokio::test]
async fn an_index_that_needs_the_role_s_path_lets_nobody_in() {
    let database = Database::empty().await;
    let attacker = Attacker::new(&database).await;
    let statements = format!(
        "grant create on schema public to {};
         create function plain(text) returns text language plpgsql immutable as 'begin return lower($1); end';
         create function searched(text) returns text language sql immutable as 'select public.plain($1)';
         create table parts (id int primary key, name text, at timestamptz not null default now()) partition by range (id);
         create table low partition of parts for values from (0) to (10); create index on low (searched(name));
         create table high (like parts including defaults, primary key (id)); create index on high (searched(name));
         create or replace function searched(text) returns text language sql immutable as 'select plain($1)'",
            attacker.name
    );
    database.run(&statements).await;
    for (signature, result) in [
        ("format(text, name, oid, integer) returns text", "'x'"),
        ("format(text, oid, xid) returns text", "'x'"),
        ("has_table_privilege(oid, varchar) returns boolean", "true"),
        ("has_schema_privilege(oid, varchar) returns boolean", "true"),
        ("concat(integer) returns text", "'x'"),
        ("concat(text, text) returns text", "'x'"),
        ("set_config(varchar, text, boolean) returns text", "'x'"),
        ("to_regclass(varchar) returns oid", "1"),
        ("array_agg_of(smallint) returns smallint", "1"),
        ("jsonb_build_array(text) returns jsonb", "'[]'"),
        ("pg_relation_filenode(oid) returns oid", "1"),
        ("pg_sequence_last_value(oid) returns bigint", "1"),
    ] {
        attacker.makes_a_trap(&format!("public.{signature}"), result).await;
    }
    let block = "[[dataset]]\nname = \"parts\"\ntable = \"parts\"\nupdated_at = \"at\"\n";
    let catalog =
        Catalog::of(&format!("{block}\n[[dataset]]\nname = \"seven\"\ntable = \"parts\"\nfilter = \"id < 7\"\n"));
    let service = catalog.serving(&database, &["parts"]).await;
    for dataset in ["parts", "seven"] {
        for export_type in ["full", "incremental", "delta"] {
            let statements = "insert into parts select max(id) + 1, 'x' from (select id from parts union select 0) ids";
            database.run(statements).await;
            export(&service, export_type, dataset, "c").await;
        }
    }
    let statements =
        "alter table parts attach partition high for values from (10) to (20); insert into parts values (11, 'y')";
    database.run(statements).await;
    export(&service, "delta", "parts", "c").await;
    for path in ["/consumers", "/datasets", "/health/ready", "/metrics"] {
        assert_eq!(service.call("GET", path, &[]).await.status(), 200, "{path}");
    }
    ends(catalog.command(&database, &["datasets", "check"]).await, 0, "");
    service.stop().await;
    attacker.assert_gained_nothing(&database).await;
}

#[tokio::test]
async fn trigger_functions_are_nobodys_to_use() {
    let database = Database::new().await;
    let rights: Vec<(String, bool, bool)> = sqlx::query_as(
        "select pg_get_userbyid(p.proowner)::text, r.rolcanlogin or r.rolsuper, has_function_privilege('public', p.oid, 'execute')
         from pg_proc p join pg_roles r on r.oid = p.proowner where p.proname like 'capture\\_%'",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert_eq!(rights.len(), 5);
    for right in rights {
        assert!(right.0.starts_with("cdc_export_capture_") && (right.1, right.2) == (false, false), "{right:?}");
    }
    let rights = "
        select distinct c.relname || ' ' || privilege_type from pg_class c cross join lateral aclexplode(c.relacl)
         where grantee::regrole::text like 'cdc\\_export\\_capture\\_%'
         union select n.nspname || ' ' || privilege_type from pg_namespace n cross join lateral aclexplode(n.nspacl)
         where grantee::regrole::text like 'cdc\\_export\\_capture\\_%' order by 1";
    let may: Vec<String> = database.all(rights).await;
    assert_eq!(may, ["cdc_export USAGE", "change_log INSERT"]);
}

/// The functions of the triggers of `users` as another version would have made them.
const OTHER_FUNCTIONS: &str = r#"
do $$ declare f record; begin
  for f in select p.oid::regprocedure as name, pg_get_functiondef(p.oid) as made from pg_proc p where p.proname like 'capture\_%' loop
    execute regexp_replace(f.made, '-- cdc-export \d+ ', '-- cdc-export 0 ');
    execute format('grant execute on function %s to public', f.name);
  end loop;
end $$;
"#;

#[tokio::test]
async fn a_start_renews_the_functions_of_another_version() {
    let database = Database::with_users(9).await;
    let fresh =
        "select string_agg(p.oid || prosrc || has_function_privilege('public', p.oid, 'execute'), ';' order by p.oid)
                 from pg_proc p where proname like 'capture\\_%'";
    let wanted: String = database.one(fresh).await;
    database.run(OTHER_FUNCTIONS).await;
    assert_ne!(database.one::<String>(fresh).await, wanted);
    Start::on(&database).service().await.stop().await;
    assert_eq!(database.one::<String>(fresh).await, wanted, "replaced in their places");
}

#[tokio::test]
async fn the_owner_of_a_tracked_table_goes_on_making_partitions() {
    let database = Database::new().await;
    let owner = Attacker::new(&database).await;
    owner.runs(&format!("create table {}.parts (a int primary key, b text) partition by range (a)", owner.name)).await;
    let catalog = Catalog::of(&format!("[[dataset]]\nname = \"parts\"\ntable = \"{}.parts\"\n", owner.name));
    catalog.track(&database, "parts").await;
    // One of the partitions has its columns in another order, and a hole in their numbers.
    owner
        .runs(&format!(
            "set search_path = {0}; create table low partition of parts for values from (0) to (9);
             create table high (gone int, b text, a int not null); alter table high drop column gone;
             insert into parts values (1, 'x')",
            owner.name
        ))
        .await;
    owner.runs("alter table parts attach partition high for values from (9) to (99)").await;
    let service = catalog.serving(&database, &["parts"]).await;
    export(&service, "full", "parts", "a").await;
    owner.runs("insert into parts values (10, 'y'), (11, 'z')").await;
    owner.runs("delete from parts").await;
    let mut rows = Csv::read(&service.path(&export(&service, "delta", "parts", "a").await)).rows;
    rows.sort();
    assert_eq!(rows, [["DELETE", "1", ""], ["DELETE", "10", ""], ["DELETE", "11", ""]]);
    service.stop().await;
    owner.assert_gained_nothing(&database).await;
}

#[tokio::test]
async fn a_service_that_may_make_roles_gives_its_functions_away() {
    let database = Database::empty().await;
    let service = Attacker::new(&database).await;
    let name = database.options.get_database().unwrap().to_owned();
    let statements = format!(
        "alter role {0} createrole; grant create on database {name} to {0}; grant create on schema public to {0}",
        service.name
    );
    database.run(&statements).await;
    let migrate =
        || Start::plain().with("DATABASE_URL", database.url_as(&service.name, "pass")).arguments(&["migrate"]);
    for _ in 0..2 {
        ends(migrate().output().await, 0, "");
        let owners = "
            select distinct pg_get_userbyid(proowner)::text || has_schema_privilege(proowner, 'cdc_export', 'create')
             from pg_proc where proname like 'capture\\_%'";
        let owners: Vec<String> = database.all(owners).await;
        assert!(owners.len() == 1 && owners[0].starts_with("cdc_export_capture_"), "{owners:?}");
        assert!(owners[0].ends_with("false"), "{owners:?}");
        database.run(&format!("drop trigger cdc_export_d on {}.users", service.name)).await;
    }
    service.runs("insert into users (name, email, created_at, updated_at) values ('a', 'a', now(), now()); delete from users").await;
    service.assert_gained_nothing(&database).await;
}

#[tokio::test]
async fn the_function_of_a_row_policy_is_not_run() {
    let database = Database::empty().await;
    let (owner, service) = (Attacker::new(&database).await, Attacker::new(&database).await);
    let name = database.options.get_database().unwrap().to_owned();
    let statements = format!(
        "grant create on database {name} to {0}; drop schema {0}; grant create on schema public to {0}",
        service.name
    );
    database.run(&statements).await;
    owner
        .runs(&format!(
            "set search_path = {0}; grant usage on schema {0} to public;
             create table caught (who text); grant insert on caught to public;
             create function runs() returns boolean language plpgsql as $$ begin
               insert into {0}.caught values (current_user); return true; end $$;
             create table kept (id int primary key, updated_at timestamptz not null default now()); insert into kept values (1), (2);
             grant select on kept to public; create policy p on kept using (runs())",
            owner.name
        ))
        .await;
    let catalog = Catalog::of(&format!(
        "[[dataset]]\nname = \"kept\"\ntable = \"{}.kept\"\nupdated_at = \"updated_at\"\ncapture = \"timestamp\"\n",
        owner.name
    ));
    let start = || catalog.start(&database).with("DATABASE_URL", database.url_as(&service.name, "pass"));
    let serving = start().arguments(&["serve", "--no-workers"]).service().await;
    let insert = "insert into watermarks (consumer_id, dataset, last_exported_at, updated_at)
                  values ('a', 'kept', '2020-01-01', now())";
    database.run(insert).await;
    let submit = async || crate::catalog::post(&serving, "/exports/incremental", Some("a"), &json!({})).await;
    let accepted: serde_json::Value = submit().await.json().await.unwrap();
    owner.runs(&format!("alter table {}.kept enable row level security", owner.name)).await;
    for path in ["/consumers", "/datasets", "/datasets/kept"] {
        serving.call("GET", path, &[]).await;
    }
    assert_eq!(refusal(submit().await).await, (409, "permission_denied".to_owned()));
    let (mut worker, _folder) = start().sharing_output(&serving).arguments(&["worker"]).spawn();
    let job = serving.ended(accepted["jobId"].as_str().unwrap()).await;
    worker.kill().await.unwrap();
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("permission_denied")), "{job}");
    let caught: i64 = database.one(&format!("select count(*) from {}.caught", owner.name)).await;
    assert_eq!(caught, 0, "the policy's function ran as the service");
    serving.stop().await;
    service.assert_gained_nothing(&database).await;
    owner.assert_gained_nothing(&database).await;
}

#[tokio::test]
async fn operators_of_a_domain_are_not_called_either() {
    let schema = "
        create extension citext; create schema kept; create domain kept.key as citext; create domain kept.moment as timestamptz;
        create table kept.orders (id kept.key primary key, at kept.moment not null, made kept.moment not null, n int)";
    let database = Database::empty_with(schema).await;
    let attacker = Attacker::new(&database).await;
    database.run(&format!("grant all on schema public to {0}; grant usage on schema kept to {0}", attacker.name)).await;
    let schema = "
        create function public.trap(a kept.key, b public.citext) returns boolean language plpgsql as
          $$ begin raise exception 'trapped'; end $$;
        create function public.trap(a kept.moment, b timestamptz) returns boolean language plpgsql as
          $$ begin raise exception 'trapped'; end $$;
        create function public.trap(a kept.moment, b kept.moment) returns boolean language plpgsql as
          $$ begin raise exception 'trapped'; end $$;
        do $$ declare name text; begin
          foreach name in array '{=,<>,<,<=,>,>=}'::text[] loop
            execute format('create operator public.%s (leftarg = kept.key, rightarg = public.citext, function = public.trap)', name);
            execute format('create operator public.%s (leftarg = kept.moment, rightarg = timestamptz, function = public.trap)', name);
            execute format('create operator public.%s (leftarg = kept.moment, rightarg = kept.moment, function = public.trap)', name);
          end loop;
        end $$";
    attacker.runs(schema).await;
    let catalog = Catalog::of(
        "[[dataset]]\nname = \"orders\"\ntable = \"kept.orders\"\nupdated_at = \"at\"\ncreated_at = \"made\"\n
         [[dataset]]\nname = \"some\"\ntable = \"kept.orders\"\nupdated_at = \"at\"\ncreated_at = \"made\"\nfilter = \"n operator(pg_catalog.>) 0\"\n",
    );
    let service = catalog.serving(&database, &["orders"]).await;
    for n in 1..=3 {
        database.run(&format!("insert into kept.orders values ('K{n}', now(), now(), 1)")).await;
        database.run("delete from kept.orders where n = 2; update kept.orders set n = n where n = 1").await;
        for dataset in ["orders", "some"] {
            for export_type in ["full", "incremental", "delta"] {
                export(&service, export_type, dataset, "a").await;
            }
        }
    }
    for condition in
        [json!({"column": "id", "op": "eq", "value": "K1"}), json!({"column": "at", "op": "lt", "value": "2020-01-01"})]
    {
        for dataset in ["orders", "some"] {
            let job =
                crate::catalog::ended(&service, "/exports", None, json!({"dataset": dataset, "filter": [condition]}))
                    .await;
            assert_eq!(job["status"], "completed", "{job}");
        }
    }
    service.stop().await;
    attacker.assert_gained_nothing(&database).await;
}

#[tokio::test]
async fn locks_that_anybody_may_take_hold_nothing_up() {
    let database = Database::new().await;
    let attacker = Attacker::new(&database).await;
    for name in ["purge", "track"] {
        attacker.runs(&format!("select pg_advisory_lock(hashtextextended('cdc_export.{name}', 0))")).await;
    }
    attacker.runs("select pg_advisory_lock(hashtextextended('cdc_export.migrate', 0))").await;
    let (mut waiting, _folder) = Start::on(&database).with("LOG_FORMAT", "json").spawn();
    let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let line = tokio::time::timeout(HANG_TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(line.contains("migration_waits") && line.contains(&attacker.name), "who holds a start up is named: {line}");
    waiting.kill().await.unwrap();
    attacker.runs("select pg_advisory_unlock(hashtextextended('cdc_export.migrate', 0))").await;
    let service = Start::on(&database).service().await;
    database.add_users(1, 9).await;
    service.export("full", "a").await;
    until("the log is purged", async || database.one::<i64>("select count(*) from cdc_export.change_log").await == 0)
        .await;
    ends(Start::on(&database).arguments(&["track", "users"]).output().await, 0, "");
    service.stop().await;
    attacker.assert_gained_nothing(&database).await;
}
