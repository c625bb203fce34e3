//! Tables of every kind through whole exports: what a consumer restores is what the source has.

mod types;

use serde_json::{Value, json};

use crate::catalog::{Catalog, Replica, ended, export};
use crate::harness::{Database, ends};
use crate::tables::types::{TYPES, database, passes, table};

#[tokio::test]
async fn every_type_comes_back_through_full_exports_and_deltas() {
    let database = database().await;
    database.run(&table("t", &(0..TYPES.len()).collect::<Vec<_>>())).await;
    passes(&database).await;
}

#[tokio::test]
async fn no_setting_of_the_role_changes_a_value() {
    let mut database = database().await;
    database.run(&table("t", &(0..TYPES.len()).collect::<Vec<_>>())).await;
    let changes = "
        alter table t drop constraint t_pkey, add names text[] not null default '{a,NULL,\"NULL\",\"\"}', add primary key (id, names)";
    database.run(changes).await;
    database.set_otherwise().await;
    passes(&database).await;
}

#[tokio::test]
async fn what_postgres_writes_is_written_as_copy_does() {
    let database = database().await;
    let schema = "create table t (id int primary key, padded char(4), nothing pair, host inet);
                  insert into t values (1, 'a', row(null, null), '10.0.0.1'), (2, null, null, null)";
    database.run(schema).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"");
    let service = catalog.serving(&database, &["t"]).await;
    let file = std::fs::read_to_string(service.path(&export(&service, "full", "t", "a").await)).unwrap();
    assert_eq!(file, "id,padded,nothing,host\n1,a   ,\"(,)\",10.0.0.1\n2,,,\n");
}

#[tokio::test]
async fn tables_may_be_called_anything() {
    let database = database().await;
    let names = ["100%", "o'clock", "a$$b", "a\"b", "select", "Ünï.cödé"];
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let block = |(i, name): (usize, &&str)| {
        format!("[[dataset]]\nname = \"t{i}\"\ntable = {}\n", toml::Value::String(quoted(name)))
    };
    let blocks: Vec<_> = names.iter().enumerate().map(block).collect();
    for name in names {
        let (key, table) = (quoted("k$f$ %I"), quoted(name));
        let statements = format!("create table {table} ({key} int primary key); insert into {table} values (1), (2)");
        database.run(&statements).await;
    }
    let catalog = Catalog::tracked(&database, &blocks).await;
    let service = catalog.start(&database).service().await;
    for (i, name) in names.into_iter().enumerate() {
        export(&service, "full", &format!("t{i}"), "a").await;
        database.run(&format!("delete from {} where true", quoted(name))).await;
        assert_eq!(export(&service, "delta", &format!("t{i}"), "a").await["rowsExported"], 2, "{name}");
    }
}

#[tokio::test]
async fn a_role_that_may_just_read_exports_what_its_owner_tracked() {
    let database = Database::empty().await;
    let role = database.role().await;
    let statements = "create schema sales; create table sales.orders (id int primary key, total int);
         insert into sales.orders select n, n from generate_series(1, 10) n;
         revoke all on schema public from public";
    database.run(statements).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"orders\"\ntable = \"sales.orders\"");
    // The owner's part; after it the service needs no right but these.
    catalog.track(&database, "orders").await;
    let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/DATASETS.md")).unwrap();
    let (_, grants) = documented.split_once("```sql\ngrant").unwrap();
    let (grants, _) = grants.split_once("```").unwrap();
    database.run(&format!("grant{grants}").replace("exporter", &role)).await;
    let start = catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass"));
    let service = start.service().await;
    let replica = Replica { database: &database, source: "select * from sales.orders", key: &["id"] };
    replica.begin(&service, &export(&service, "full", "orders", "a").await).await;
    database.run("delete from sales.orders where id = 3; update sales.orders set total = 0 where id = 4").await;
    replica.apply(&service, &export(&service, "delta", "orders", "a").await).await;
    replica.require_equal().await;
    // A writer of the table needs no right on the log.
    let writer = sqlx::PgPool::connect(&database.url_as(&role, "pass")).await.unwrap();
    assert!(sqlx::query("delete from sales.orders").execute(&writer).await.is_err());
    let statements =
        format!("grant delete on sales.orders to {role}; revoke all on all tables in schema cdc_export from {role}");
    database.run(&statements).await;
    sqlx::query("delete from sales.orders where id = 5").execute(&writer).await.unwrap();
    writer.close().await;
    let logged = "select count(*) from cdc_export.change_log where key = '5' and operation = 'D'";
    assert_eq!(database.one::<i64>(logged).await, 1);
    // It has no right on its tables any more, with which it would end well.
    service.signal(nix::sys::signal::Signal::SIGKILL);
}

/// The planner opens a function of an index to see what it calls: here a function that only the role's own search_path
/// finds.
#[tokio::test]
async fn an_index_on_a_function_that_names_another_without_its_schema_is_no_obstacle() {
    let schema = "
        create schema helpers;
        create function helpers.plain(text) returns text language plpgsql immutable as 'begin return lower($1); end';
        create function searched(text) returns text language sql immutable as 'select helpers.plain($1)';
        create table single (id int primary key, name text, is_deleted bool not null default false, updated_at timestamptz not null default now());
        create index on single (searched(name)); create index on single (id) where searched(name) = 'x';
        create table parted (id int primary key, name text, is_deleted bool not null default false,
          updated_at timestamptz not null default now(), check (searched(name) <> 'none')) partition by range (id);
        create table low partition of parted for values from (0) to (100);
        create index on low (searched(name));
        create table high (like parted including all); create index on high (searched(name));
        insert into single values (1, 'A'), (2, 'B'); insert into parted values (1, 'A'), (2, 'B')";
    let database = Database::empty_with(schema).await;
    // Postgres 17 and later make such an index only if the function is well at that time.
    let name: String = database.one("select current_database()::text").await;
    let statements = format!(
        "alter database {name} set search_path = public, helpers; set search_path = public, helpers;
         create or replace function searched(text) returns text language sql immutable as 'select plain($1)'"
    );
    database.run(&statements).await;
    let database = Database::at((*database.pool.connect_options()).clone());
    let block = |name: &str| {
        format!(
            "[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\nupdated_at = \"updated_at\"\ndeleted = \"is_deleted\"\n"
        )
    };
    let catalog = Catalog::of(&["single", "parted"].map(block).concat());
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    ends(catalog.command(&database, &["datasets", "check"]).await, 0, "");
    let service = catalog.start(&database).service().await;
    for dataset in ["single", "parted"] {
        let source = format!("table {dataset}");
        let replica = Replica { database: &database, source: &source, key: &["id"] };
        let job = export(&service, "full", dataset, "a").await;
        replica.begin(&service, &job).await;
        let statements = format!(
            "insert into {dataset} values (3, 'C'); update {dataset} set name = 'b' where id = 2; delete from {dataset} where id = 1"
        );
        database.run(&statements).await;
        // The statement that looks at a table is not made for the role's search_path.
        let lags = service.call("GET", "/consumers", &[]).await.json::<Value>().await.unwrap();
        let is_its = |lag: &&Value| lag["dataset"] == dataset;
        let lag = lags["items"].as_array().unwrap().iter().find(is_its).unwrap();
        assert_eq!(lag["state"], Value::Null, "{lag}");
        let job = export(&service, "incremental", dataset, "b").await;
        assert_eq!(job["rowsExported"], 2, "{job}");
        replica.apply(&service, &export(&service, "delta", dataset, "a").await).await;
        replica.require_equal().await;
    }
    // One that came since, with such an index of its own.
    let changes =
        "alter table parted attach partition high for values from (100) to (200); insert into parted values (101, 'C')";
    database.run(changes).await;
    assert_eq!(export(&service, "delta", "parted", "a").await["rowsExported"], 1);

    // A missing function is reported. A session remembers the functions of an index until the index is altered.
    let statements =
        "alter function helpers.plain(text) rename to gone; alter index single_searched_idx set (fillfactor = 80)";
    database.run(statements).await;
    let why = "function plain(text) does not exist";
    let job = ended(&service, "/exports/delta", Some("a"), json!({ "dataset": "single" })).await;
    assert_eq!(job["error"]["code"], "dataset_mismatch", "{job}");
    assert!(job["error"]["detail"].as_str().unwrap().contains(why), "{job}");
    let (code, _, said) = catalog.command(&database, &["datasets", "check"]).await;
    assert!(code == 2 && said.contains("single: table") && said.contains(why), "{code} {said}");
    database.run("alter function helpers.gone(text) rename to plain").await;
    assert_eq!(export(&service, "delta", "single", "a").await["rowsExported"], 0);
}
