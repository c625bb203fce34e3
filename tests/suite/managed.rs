//! Servers of providers, which refuse functions and catalogs of Postgres that the service's statements use.

use std::collections::BTreeSet;

use cdc_export::postgres;
use serde_json::json;

use crate::catalog::{Catalog, ended, export};
use crate::harness::{Csv, Database, ends, needs_full};
use crate::rights::role_apart;
use crate::source_files::{code_below, files_below};

/// What Aurora says with its default `wal_level`.
const WITHOUT_A_TIMELINE: &str = "
    alter function pg_catalog.pg_current_wal_lsn() rename to pg_current_wal_lsn_of_postgres;
    create function pg_catalog.pg_current_wal_lsn() returns pg_lsn language plpgsql as $$ begin
      raise exception 'wal_level must be set to ''logical''' using errcode = '55000',
        hint = 'WAL control functions cannot be executed when wal_level < logical.';
    end $$";

const WITH_A_TIMELINE: &str = "
    drop function pg_catalog.pg_current_wal_lsn();
    alter function pg_catalog.pg_current_wal_lsn_of_postgres() rename to pg_current_wal_lsn";

/// Returns what the start asks for: the entries of its list.
fn needed() -> Vec<String> {
    let (_, text) =
        files_below(&["src/postgres"], "rs").into_iter().find(|(name, _)| name.ends_with("needed.rs")).unwrap();
    let list = text.split("const NEEDED: &str = \"").nth(1).unwrap().split("\";").next().unwrap();
    list.split(';').map(|needed| needed.trim().to_owned()).collect()
}

/// Returns the words of a text that may be names.
fn words(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = text.char_indices().filter(move |(at, c)| is_part(*c) && !text[..*at].ends_with(is_part));
    starts.map(move |(at, _)| {
        let length = text[at..].find(|c| !is_part(c)).unwrap_or(text.len() - at);
        text[at..].split_at(length)
    })
}

#[tokio::test]
async fn the_start_asks_for_each_function_and_catalog_that_a_statement_uses() {
    let database = Database::new().await;
    let functions = "select distinct proname::text from pg_proc where pronamespace = 'pg_catalog'::regnamespace
         and starts_with(proname, 'pg_')";
    let functions: BTreeSet<String> = database.all(functions).await.into_iter().collect();
    let catalogs =
        "select relname::text from pg_class where relnamespace = 'pg_catalog'::regnamespace and relkind in ('r', 'v')";
    let catalogs: BTreeSet<String> = database.all(catalogs).await.into_iter().collect();
    let without_comments = |(_, text): (String, String)| -> String {
        text.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join("\n")
    };
    let of_source = files_below(&["src", "crates/cdc-capture", "migrations"], "sql").into_iter();
    let code = ["src", "crates/cdc-capture/src", "crates/pg-session/src"].into_iter().flat_map(code_below);
    let needed = needed().join(";");
    let is_asked = |name: &str| words(&needed).any(|(word, _)| word == name);
    // The checks before ask for the first two. The service does without the last two.
    let others = ["pg_is_in_recovery", "pg_backend_pid", "pg_stat_subscription", "pg_subscription"];
    let mut used = BTreeSet::new();
    for text in of_source.map(without_comments).chain(code.map(without_comments)) {
        for (word, rest) in words(&text) {
            let is_used = functions.contains(word) && rest.starts_with('(') || catalogs.contains(word);
            if is_used && !others.contains(&word) {
                used.insert(word.to_owned());
            }
        }
    }
    let forgotten: Vec<_> = used.iter().filter(|name| !is_asked(name)).collect();
    assert!(used.len() > 55 && forgotten.is_empty(), "{} used, not asked for: {forgotten:?}", used.len());
}

/// Returns statements that let a function raise an error that doesn't name it, or remove the function if nothing can
/// take its place, and statements that put it back.
async fn broken(database: &Database, needed: &str) -> (String, String) {
    let name = needed.split('(').next().unwrap();
    // `where false` doesn't call the function, and only Postgres's own functions take any type.
    let may_raise = !needed.contains("where false") && name != "pg_column_size";
    let statements = format!(
        "select string_agg(format('alter function pg_catalog.%1$s rename to {name}_of_postgres;', f.signature)
             || case when {may_raise} then format($x$create function pg_catalog.%1$I(%2$s) returns %3$s language plpgsql as
               $$ begin raise exception 'not supported by this engine' using errcode = '0A000'; end $$;$x$, f.proname,
               pg_get_function_arguments(f.oid), pg_get_function_result(f.oid)) else '' end, ' ')
           || '#' || string_agg(case when {may_raise} then format('drop function pg_catalog.%s;', f.signature) else '' end
             || format('alter function pg_catalog.%s rename to {name};', replace(f.signature, '{name}(', '{name}_of_postgres(')), ' ')
         from (select oid, proname, oid::regprocedure::text as signature from pg_proc
               where proname = '{name}' and pronamespace = 'pg_catalog'::regnamespace) f"
    );
    let both: String = database.one(&statements).await;
    let (break_it, mend_it) = both.split_once('#').unwrap();
    (break_it.to_owned(), mend_it.to_owned())
}

/// A start, `track` and `datasets check` all begin so.
#[tokio::test]
async fn each_function_that_a_server_refuses_is_named_at_the_start() {
    let database = Database::new().await;
    let opened = || postgres::Database::from(database.options.clone());
    for needed in
        needed().iter().filter(|needed| !needed.starts_with("from ") && !needed.starts_with("pg_walfile_name"))
    {
        let name = needed.split('(').next().unwrap();
        let (break_it, mend_it) = broken(&database, needed).await;
        database.run(&break_it).await;
        let refused = postgres::require_migrated(&opened()).await;
        database.run(&mend_it).await;
        let refused = refused.expect_err(name).to_string();
        assert!(refused.starts_with(&format!("this Postgres refuses the service {name}, ")), "{name}: {refused}");
    }
    postgres::require_migrated(&opened()).await.unwrap();
}

#[tokio::test]
async fn a_right_that_was_revoked_on_postgres_itself_is_named_by_the_start_track_and_the_check() {
    let database = Database::new_with("create table t (id int primary key); insert into t values (1)").await;
    let role = role_apart(&database).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\n");
    for (revoked, said) in [
        (
            "execute on function pg_catalog.pg_control_system",
            "pg_control_system, which its exports need: permission denied",
        ),
        (
            "execute on function pg_catalog.pg_walfile_name",
            "pg_walfile_name, which its exports need: permission denied",
        ),
        (
            "execute on function pg_catalog.pg_terminate_backend",
            "pg_terminate_backend, which its exports need: permission",
        ),
        (
            "select on pg_catalog.pg_inherits",
            "a catalog, which its exports need: permission denied for table pg_inherits",
        ),
    ] {
        database.run(&format!("revoke {revoked} from public")).await;
        for arguments in [&["serve"][..], &["track", "t"], &["datasets", "check"]] {
            let start = catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass"));
            let (_, line) = ends(start.arguments(arguments).output().await, 1, said);
            assert_eq!(line.lines().count(), 1, "{line}");
        }
        database.run(&format!("grant {revoked} to public")).await;
    }
}

#[tokio::test]
async fn a_server_that_tells_no_timeline_exports_and_the_start_says_so() {
    let statements = format!("create table t (id int primary key); insert into t values (1);{WITHOUT_A_TIMELINE}");
    let database = Database::empty_with(&statements).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\n");
    catalog.track(&database, "t").await;
    let (code, fits, said) = catalog.start(&database).arguments(&["datasets", "check"]).output().await;
    assert!(code == 0 && fits.contains("fits its table"), "{fits} {said}");
    let service = catalog.start(&database).service().await;
    let warned = service.events("timeline_unknown");
    assert!(!warned.is_empty() && warned[0]["error"] == "wal_level must be set to 'logical'", "{warned:?}");
    assert_eq!(service.call("GET", "/health/ready", &[]).await.status(), 200);
    export(&service, "full", "t", "c").await;
    database.run("insert into t values (2)").await;
    let job = export(&service, "delta", "t", "c").await;
    assert_eq!(Csv::read(&service.path(&job)).ids(), [2]);
}

/// A server that begins to tell its timeline, or that no longer does, may be another one.
#[tokio::test]
async fn a_timeline_that_becomes_unknown_or_known_counts_as_another_one() {
    let database = Database::empty_with("create table t (id int primary key); insert into t values (1)").await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\n");
    catalog.track(&database, "t").await;
    for change in [WITHOUT_A_TIMELINE, WITH_A_TIMELINE] {
        // Each service has a folder of its own, so there is no marker of the export before.
        let service = catalog.start(&database).service().await;
        export(&service, "full", "t", "c").await;
        service.stop().await;
        database.run(change).await;
        let service = catalog.start(&database).service().await;
        let job = ended(&service, "/exports/delta", Some("c"), json!({ "dataset": "t" })).await;
        needs_full(&job, "database_restored");
    }
}

/// Azure shows `pg_subscription` to nobody.
#[tokio::test]
async fn where_subscriptions_are_hidden_each_that_writes_to_a_partitioned_table_is_warned_of() {
    let database = Database::new().await;
    let (name, version) = (format!("s_{}", uuid::Uuid::new_v4().simple()), database.postgres_version().await);
    let statements = format!(
        "create table t (id int primary key) partition by range (id); create table part partition of t default;
         create subscription {name} connection 'dbname=nowhere' publication p with (connect = false, slot_name = none);
         insert into pg_subscription_rel (srsubid, srrelid, srsubstate)
           select oid, 't'::regclass, 'r' from pg_subscription where subname = '{name}'"
    );
    database.run(&statements).await;
    let catalog = Catalog::of_tables(&["t"]);
    catalog.track(&database, "t").await;
    let role = role_apart(&database).await;
    let columns = "select string_agg(attname, ', ') from pg_attribute where attrelid = 'pg_subscription'::regclass and attnum > 0";
    let columns: String = database.one(columns).await;
    database.run(&format!("revoke all ({columns}) on pg_subscription from public")).await;
    let start = catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass"));
    let said = if version >= 16 { "may write to it with parallel workers" } else { "" };
    ends(start.arguments(&["datasets", "check"]).output().await, 0, said);
    database.run(&format!("drop subscription {name}")).await;
}
