//! Any table: a catalog, what it promises of each dataset, and what is wrong with one.

use serde_json::{Value, json};

use crate::catalog::{Catalog, Replica, ended, export, post};
use crate::harness::{Csv, Database, Service, Start, ends, needs_full, refusal, silent};

const SALES: &str = r#"create schema "Sales";
    create table "Sales"."Order ""Lines""" (
      "Region" text, "No." integer, "select" numeric(12,2), note text, internal text,
      modified timestamp not null default timezone('utc', clock_timestamp()), "deletedAt" timestamptz,
      primary key ("Region", "No."));
    insert into "Sales"."Order ""Lines""" ("Region", "No.", "select", note, internal)
      select chr(65 + n % 3), n, n / 7.0, case n % 3 when 0 then null when 1 then '' else 'a,"b"' end, 'secret'
      from generate_series(1, 500) n"#;
const LINES: &str = r#"
    [[dataset]]
    name = "lines"
    table = '"Sales"."Order ""Lines"""'
    exclude = ["internal"]
    updated_at = "modified"
    deleted = "deletedAt"
"#;

#[tokio::test]
async fn a_table_with_odd_names_and_a_key_of_two_columns_is_exact() {
    let database = Database::empty_with(SALES).await;
    let catalog = Catalog::of(LINES);
    let service = catalog.serving(&database, &["lines"]).await;
    let replica = Replica {
        database: &database,
        source: r#"select "Region", "No.", "select", note, modified, "deletedAt" from "Sales"."Order ""Lines""" where "deletedAt" is null"#,
        key: &["Region", "No."],
    };
    let full = export(&service, "full", "lines", "a").await;
    assert!(full["outputFilename"].as_str().unwrap().starts_with("full_lines_a_"), "{full}");
    assert_eq!((&full["dataset"], &full["rowsExported"]), (&json!("lines"), &json!(500)));
    replica.begin(&service, &full).await;
    replica.require_equal().await;
    export(&service, "full", "lines", "b").await;
    // A late commit, with a time of before: what was open while the full export ran.
    let late = database
        .open(r#"update "Sales"."Order ""Lines""" set note = 'late', modified = '2001-01-01' where "No." = 7"#)
        .await;
    let statements = r#"delete from "Sales"."Order ""Lines""" where "No." in (10, 11);
           update "Sales"."Order ""Lines""" set "deletedAt" = now(), modified = timezone('utc', now()) where "No." = 12;
           update "Sales"."Order ""Lines""" set "No." = 1013 where "No." = 13;
           insert into "Sales"."Order ""Lines""" ("Region", "No.", note) values ('Z', 2000, 'new'), ('Z', 2001, 'new');
           update "Sales"."Order ""Lines""" set note = 'changed' where "No." = 2001"#;
    database.run(statements).await;
    let delta = export(&service, "delta", "lines", "a").await;
    let file = Csv::read(&service.path(&delta));
    let key = |row: &Vec<String>| format!("{} {}{}", row[0], row[1], row[2]);
    let mut seen: Vec<_> = file.rows.iter().map(key).collect();
    seen.sort();
    // Without `created_at`, the log shows which rows are new.
    assert_eq!(
        seen,
        ["DELETE A12", "DELETE B10", "DELETE B13", "DELETE C11", "INSERT Z2000", "INSERT Z2001", "UPDATE B1013"]
    );
    replica.apply(&service, &delta).await;
    // These rows are found by their times and by the log, and are sent once.
    assert_eq!(export(&service, "incremental", "lines", "b").await["rowsExported"], 3);
    late.commit().await.unwrap();
    let delta = export(&service, "delta", "lines", "a").await;
    assert_eq!((&delta["rowsExported"], &delta["lateRows"]), (&json!(1), &json!(1)));
    replica.apply(&service, &delta).await;
    replica.require_equal().await;
    assert_eq!(export(&service, "incremental", "lines", "a").await["rowsExported"], 0);
}

#[tokio::test]
async fn a_table_without_times_is_exact_by_the_log_alone() {
    let database = Database::empty_with("create table stock (sku text primary key, amount int); insert into stock select 's' || n, n from generate_series(1, 50) n").await;
    let catalog = Catalog::of("[[dataset]]\nname = \"stock\"\ntable = \"stock\"");
    let service = catalog.serving(&database, &["stock"]).await;
    let replica = Replica { database: &database, source: "select * from stock", key: &["sku"] };
    let first = export(&service, "delta", "stock", "a").await;
    assert!(Csv::read(&service.path(&first)).rows.iter().all(|row| row[0] == "INSERT"));
    let full = export(&service, "full", "stock", "b").await;
    replica.begin(&service, &full).await;
    // The rows have no time, so the watermark has that of the snapshot.
    let answer = service.call("GET", "/exports/watermark?dataset=stock", &[("X-Consumer-ID", "b")]).await;
    let watermark: Value = answer.json().await.unwrap();
    assert_eq!(watermark["lastExportedAt"], full["watermarkTo"], "{watermark}");
    assert!(full["watermarkTo"].as_str() > full["createdAt"].as_str(), "{full}");
    for change in ["update stock set amount = 0 where sku < 's2'", "delete from stock where sku like '%3'", "select"] {
        database.run(change).await;
        let delta = export(&service, "delta", "stock", "b").await;
        assert_eq!(delta["lateRows"], 0, "{delta}");
        replica.apply(&service, &delta).await;
        replica.require_equal().await;
    }
    // A time says nothing here, whoever sets it.
    database.run("update watermarks set last_exported_at = '2001-01-01' where consumer_id = 'b'").await;
    needs_full(&ended(&service, "/exports/delta", Some("b"), json!({ "dataset": "stock" })).await, "rewound");
    export(&service, "full", "stock", "b").await;
    assert_eq!(export(&service, "delta", "stock", "b").await["rowsExported"], 0);
}

#[tokio::test]
async fn a_row_that_leaves_the_filter_is_deleted_and_tells_nothing_more() {
    let schema = "
        create table orders (id int primary key, tenant int, old text, op text, at timestamptz not null default clock_timestamp());
        insert into orders (id, tenant, old) select n, n % 3, 'of ' || n % 3 from generate_series(1, 30) n";
    let database = Database::empty_with(schema).await;
    let catalog = Catalog::of(
        "[[dataset]]\nname = \"orders\"\ntable = \"orders\"\nupdated_at = \"at\"\nfilter = \"tenant = 1 -- ours\"",
    );
    let service = catalog.serving(&database, &["orders"]).await;
    let replica = Replica { database: &database, source: "select * from orders where tenant = 1", key: &["id"] };
    // A consumer that begins with a delta learns nothing of other tenants' rows.
    assert_eq!(export(&service, "delta", "orders", "b").await["rowsExported"], 10);
    let full = export(&service, "full", "orders", "a").await;
    replica.begin(&service, &full).await;
    replica.require_equal().await;
    let changes =
        "update orders set tenant = 2, at = now() where id = 1; update orders set tenant = 1, at = now() where id = 2;
             update orders set old = 'x' where id = 3; delete from orders where id in (4, 5)";
    database.run(changes).await;
    assert_eq!(export(&service, "incremental", "orders", "b").await["rowsExported"], 1);
    let delta = export(&service, "delta", "orders", "a").await;
    let file = Csv::read(&service.path(&delta));
    for row in file.rows.iter().filter(|row| row[0] == "DELETE") {
        assert!(row[2..].iter().all(String::is_empty), "{row:?}");
    }
    assert_eq!(file.sorted("id"), ["1", "2", "3", "4", "5"]);
    replica.apply(&service, &delta).await;
    replica.require_equal().await;
}

#[tokio::test]
async fn by_timestamp_a_row_leaves_the_filter_once() {
    let schema = "create table t (id int primary key, tenant int, at timestamptz default now());
                  insert into t select n, 1 from generate_series(1, 5) n";
    let database = Database::empty_with(schema).await;
    let catalog = Catalog::of(
        "[[dataset]]\nname = \"t\"\ntable = \"t\"\nupdated_at = \"at\"\nfilter = \"tenant = 1\"\n\
         capture = \"timestamp\"\noverlap = \"0s\"",
    );
    let service = catalog.start(&database).service().await;
    assert_eq!(export(&service, "full", "t", "a").await["rowsExported"], 5);
    // Unknown is outside, too.
    database.run("update t set tenant = nullif(id, 1), at = now() where id <= 2").await;
    let delta = export(&service, "delta", "t", "a").await;
    let rows = Csv::read(&service.path(&delta)).rows;
    assert_eq!(rows.iter().map(|row| row.join(",")).collect::<Vec<_>>(), ["DELETE,1,,", "DELETE,2,,"]);
    assert_eq!(export(&service, "delta", "t", "a").await["rowsExported"], 0);
}

#[tokio::test]
async fn by_timestamp_another_table_under_the_name_wants_a_full_export() {
    let database = Database::empty().await;
    let table = |name: &str, from: u32, to: u32| {
        format!(
            "create table {name} (id int primary key, at timestamptz default now() - interval '1 day');
             insert into {name} select n from generate_series({from}, {to}) n"
        )
    };
    database.run(&table("t", 1, 9)).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\nupdated_at = \"at\"\ncapture = \"timestamp\"");
    let service = catalog.start(&database).service().await;
    export(&service, "full", "t", "a").await;
    // The rows of this table have times before the watermark. By time alone, none of them would come, and none of the
    // old ones would go.
    let statements = format!("{}; alter table t rename to old; alter table other rename to t", table("other", 5, 20));
    database.run(&statements).await;
    for export_type in ["incremental", "delta"] {
        let job = ended(&service, &format!("/exports/{export_type}"), Some("a"), json!({ "dataset": "t" })).await;
        needs_full(&job, "table_recreated");
    }
    assert_eq!(export(&service, "full", "t", "a").await["rowsExported"], 16);
    assert_eq!(export(&service, "delta", "t", "a").await["continuity"], Value::Null);
    // A time that somebody set by hand is of no table.
    database.run("insert into watermarks (consumer_id, dataset, last_exported_at) values ('b', 't', now() - interval '2 days')").await;
    assert_eq!(export(&service, "incremental", "t", "b").await["rowsExported"], 16);
}

#[tokio::test]
async fn two_datasets_of_a_table_share_its_triggers() {
    let database = Database::with_users(10).await;
    database.run("create table t (id int primary key)").await;
    let of =
        |name: &str, table: &str, more: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{table}\"\n{more}\n");
    let users = of("users", "users", "columns = [\"id\"]");
    let emails = of("emails", "users", "key = [\"email\"]\ncolumns = [\"id\", \"email\"]");
    let names = of("names", "users", "columns = [\"id\", \"name\"]");
    let catalog = Catalog::of(&[users.as_str(), &names, &of("t", "t", "")].concat());
    let service = catalog.serving(&database, &["names"]).await;
    for dataset in ["users", "names"] {
        export(&service, "full", dataset, "a").await;
    }
    ends(catalog.command(&database, &["untrack", "users"]).await, 1, "`names` is of the same table");
    // A look at another file changes nothing.
    let draft = Catalog::of(&emails);
    for arguments in [&["datasets", "check"][..], &["datasets", "list"], &["status"]] {
        draft.command(&database, arguments).await;
    }
    database.run("update users set name = 'x' where id = 1").await;
    for dataset in ["users", "names"] {
        assert_eq!(export(&service, "delta", dataset, "a").await["rowsExported"], 1);
    }
    let unready: Value = service.call("GET", "/datasets/t", &[]).await.json().await.unwrap();
    assert!(unready["ready"] == false && unready["problems"][0].as_str().unwrap().contains("track t"), "{unready}");
    service.stop().await;
    // Rows that somebody made by hand are of nobody, and in nobody's way.
    database.run("insert into watermarks (consumer_id, dataset, last_exported_at) values ('bad id!', 't', now()), ('a', 'a/b', now())").await;
    let service = catalog.start(&database).service().await;
    let consumers: Value = service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    assert_eq!(consumers["items"].as_array().unwrap().len(), 2, "{consumers}");
    service.stop().await;
    // Datasets with different keys can't share the triggers.
    catalog.write(&[users, emails].concat());
    ends(catalog.command(&database, &["track", "emails"]).await, 2, "which has another key");
    // A dataset that is no more lets its watermarks go.
    catalog.write(&of("t", "t", ""));
    let service = catalog.start(&database).service().await;
    let forgotten = service.call("DELETE", "/exports/watermark?dataset=names", &[("X-Consumer-ID", "a")]).await;
    assert_eq!(forgotten.status(), 204);
    assert_eq!(database.one::<i64>("select count(*) from watermarks where dataset = 'names'").await, 0);
    for path in ["/exports?dataset=a%00b", "/consumers?cursor=a/%00"] {
        assert_eq!(service.call("GET", path, &[]).await.status(), 400, "{path}");
    }
    assert_eq!(service.call("DELETE", "/exports/watermark?dataset=%00", &[("X-Consumer-ID", "a")]).await.status(), 404);
}

#[tokio::test]
async fn another_filter_wants_a_full_export() {
    let database = Database::empty_with("create table t (id int primary key, x int, gone bool, at timestamptz default now()); insert into t select n, n % 2, n = 9 from generate_series(1, 20) n").await;
    let by = |more: &str| format!("[[dataset]]\nname = \"t\"\ntable = \"t\"\nupdated_at = \"at\"\n{more}");
    let catalog = Catalog::of(&by("filter = \"x = 1\""));
    catalog.track(&database, "t").await;
    for (more, rows) in [
        ("filter = \"x = 1\"", 10),
        ("filter = \"x = 0\"", 10),
        ("", 20),
        ("deleted = \"gone\"", 19),
        ("deleted = \"gone\"\ncapture = \"timestamp\"", 19),
        ("filter = \"x = 1\"\ncapture = \"timestamp\"", 10),
    ] {
        catalog.write(&by(more));
        let service = catalog.start(&database).service().await;
        if database.one::<bool>("select exists (select from watermarks)").await {
            for export_type in ["incremental", "delta"] {
                let job =
                    ended(&service, &format!("/exports/{export_type}"), Some("a"), json!({ "dataset": "t" })).await;
                needs_full(&job, "dataset_changed");
            }
            assert_eq!(service.get("/consumers").await["items"][0]["continuity"], "dataset_changed");
        }
        assert_eq!(export(&service, "full", "t", "a").await["rowsExported"], rows, "{more}");
        export(&service, "delta", "t", "a").await;
    }
}

#[tokio::test]
async fn by_timestamp_a_table_needs_to_be_read_only() {
    let database = Database::new().await;
    let role = database.role().await;
    let name = database.options.get_database().unwrap();
    let statements = format!(
        "create schema theirs;
         create table theirs.events (id int primary key, at timestamptz not null, gone bool not null default false);
         insert into theirs.events select n, now() - interval '1 hour' from generate_series(1, 100) n;
         revoke all on schema public from public;
         grant usage on schema theirs to {role}; grant select on theirs.events to {role};
         grant usage, create on schema public, cdc_export to {role}; grant create on database {name} to {role};
         grant all on all tables in schema public, cdc_export to {role};
         grant all on all sequences in schema public, cdc_export to {role}"
    );
    database.run(&statements).await;
    let catalog = Catalog::of(
        "[[dataset]]\nname = \"events\"\ntable = \"theirs.events\"\nupdated_at = \"at\"\ndeleted = \"gone\"\n\
         capture = \"timestamp\"\noverlap = \"10m\"",
    );
    let start = catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass"));
    let service = start.service().await;
    assert_eq!(export(&service, "full", "events", "a").await["rowsExported"], 100);
    // All of one time: within the overlap they come again, and a later export is not the poorer for it.
    let again = export(&service, "incremental", "events", "a").await;
    assert_eq!(again["rowsExported"], 100);
    assert_eq!(again["continuity"], Value::Null);
    assert_eq!(again["lateRows"], 0);
    let changes = "
        update theirs.events set at = now() where id <= 5; update theirs.events set gone = true, at = now() where id = 6;
        insert into theirs.events values (101, now() - interval '5 minutes'), (102, now() - interval '2 hours')";
    database.run(changes).await;
    let delta = export(&service, "delta", "events", "a").await;
    let file = Csv::read(&service.path(&delta));
    assert_eq!(file.rows.iter().filter(|row| row[0] == "DELETE").map(|row| row[1].as_str()).collect::<Vec<_>>(), ["6"]);
    // A row from the future hides nothing.
    database.run("insert into theirs.events values (200, now() + interval '50 years')").await;
    export(&service, "incremental", "events", "b").await;
    database.run("insert into theirs.events values (201, now())").await;
    let after = export(&service, "incremental", "events", "b").await;
    assert!(Csv::read(&service.path(&after)).sorted("id").contains(&"201"), "{after}");
    database.run("delete from theirs.events where id >= 200").await;
    // A change further back than the overlap is missed. Only triggers would capture it.
    let ids = file.sorted("id");
    assert!(["1", "5", "101"].iter().all(|id| ids.contains(id)) && !ids.contains(&"102"), "{ids:?}");
    let delta = export(&service, "delta", "events", "a").await;
    assert_eq!(Csv::read(&service.path(&delta)).rows.len(), 7, "those within the overlap, and the deletion");
    service.stop().await;
    ends(catalog.command(&database, &["track", "events"]).await, 1, "needs no triggers");
}

#[tokio::test]
async fn a_start_tells_every_mistake_of_the_catalog_with_its_line() {
    let schema = "
        create schema sales;
        create table sales.orders (id int primary key, total numeric, at date, operation text, pair int not null);
        create table bare (a int, b int)";
    let database = Database::empty_with(schema).await;
    let catalog = Catalog::of(
        r#"[[dataset]]
name = "orders"
table = "sales.orders"
columns = [
  "id",
  "totl",
  "operation",
]
updated_at = "at"
deleted = "total"
[[dataset]]
name = "missing"
table = "sales.order"
[[dataset]]
name = "bare"
table = "bare"
[[dataset]]
name = "keyed"
table = "bare"
key = ["a", "c"]
[[dataset]]
name = "pairs"
table = "sales.orders"
key = ["pair"]
exclude = ["pair", "operation"]
[[dataset]]
name = "when"
table = "sales.orders"
exclude = ["operation"]
filter = "at > now()"
[[dataset]]
name = "what"
table = "sales.orders"
exclude = ["operation"]
filter = "totl > 1"
[[dataset]]
name = "brackets"
table = "sales.orders"
exclude = ["operation"]
filter = "id = 1) or (id = 2"
"#,
    );
    for arguments in [&[][..], &["worker"], &["datasets", "check"]] {
        let (code, _, said) = catalog.command(&database, arguments).await;
        let found: Vec<_> = said.lines().filter_map(|line| Some(&line[line.find("line ")?..])).collect();
        let expected = [
            "line 6: orders: columns: there is no column `totl` in `sales.orders`; is it `total`?",
            "line 7: orders: columns: a delta's first column has the name `operation`",
            "line 9: orders: updated_at: `at` is date",
            "line 10: orders: deleted: `total` is numeric",
            "line 13: missing: table: there is no table `sales.order`; is it `sales.orders`?",
            "line 14: bare: key: `bare` has no primary key",
            "line 20: keyed: key: `a` may be null",
            "line 20: keyed: key: there is no column `c` in `bare`",
            "line 24: pairs: key: `sales.orders` has no unique index on just (pair)",
            "line 25: pairs: exclude: without the key's `pair`",
            "line 30: when: filter: it has to be told from the row alone",
            "line 35: what: filter: Postgres doesn't take it as a condition: column \"totl\" does not exist",
            "line 40: brackets: filter: Postgres doesn't take it as a condition: syntax error",
        ];
        assert_eq!((code, found.len()), (2, expected.len()), "{arguments:?}: {said}");
        for (line, expected) in found.iter().zip(expected) {
            assert!(line.starts_with(expected), "{line}");
        }
        let begins = format!("cdc-export: DATASETS: {}: line ", catalog.path().display());
        assert_eq!(said.matches(&begins).count(), said.lines().count(), "a line for each: {said}");
    }
    catalog.write("[[dataset]]\nname = \"orders\"\ntable = \"sales.orders\"\ncolums = []");
    let (code, _, said) = catalog.command(&database, &["datasets", "list"]).await;
    assert!(code == 2 && said.lines().count() == 1, "{said}");
    let path = catalog.path().display().to_string();
    assert!(said.starts_with(&format!("cdc-export: DATASETS: {path}: line 4: unknown field `colums`")), "{said}");
}

#[tokio::test]
async fn a_changed_table_is_told_of_and_never_half_exported() {
    let database = Database::empty_with("create table a (id int primary key, x int); create table b (id int primary key, x int); insert into a values (1, 1); insert into b values (1, 1)").await;
    let both = "[[dataset]]\nname = \"a\"\ntable = \"a\"\n[[dataset]]\nname = \"b\"\ntable = \"b\"\ncolumns = [\"id\", \"x\"]\n";
    let catalog = Catalog::of(both);
    let service = catalog.serving(&database, &["a", "b"]).await;
    for dataset in ["a", "b"] {
        assert_eq!(export(&service, "full", dataset, "c").await["schemaChanged"], false);
    }
    database.run("alter table a add column y int default 7; alter table b add column y int default 7; update a set x = 2; update b set x = 2").await;
    let a = export(&service, "delta", "a", "c").await;
    assert_eq!(a["schemaChanged"], true);
    assert_eq!(Csv::read(&service.path(&a)).header, ["operation", "id", "x", "y"]);
    assert_eq!(export(&service, "delta", "b", "c").await["schemaChanged"], false);
    assert_eq!(export(&service, "delta", "a", "c").await["schemaChanged"], false);
    // Another type of a column is another shape, and who was away learns it too.
    database.run("alter table a alter column y type text using 'from ' || y; alter table b drop column x").await;
    for export_type in ["incremental", "delta"] {
        let path = format!("/exports/{export_type}");
        needs_full(&ended(&service, &path, Some("c"), json!({ "dataset": "a" })).await, "column_retyped");
    }
    assert_eq!(export(&service, "full", "a", "c").await["schemaChanged"], true);
    assert_eq!(export(&service, "delta", "a", "c").await["rowsExported"], 0);
    let stopped = ended(&service, "/exports/delta", Some("c"), json!({ "dataset": "b" })).await;
    assert_eq!(stopped["error"]["code"], "dataset_mismatch", "{stopped}");
    assert!(stopped["error"]["detail"].as_str().unwrap().contains("there is no column `x` in `b`"), "{stopped}");
    let described: Value = service.call("GET", "/datasets/b", &[]).await.json().await.unwrap();
    assert_eq!(described["ready"], false, "{described}");
    assert_eq!(described["problems"].as_array().unwrap().len(), 1, "{described}");
    let consumers: Value = service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    let states: Vec<_> =
        consumers["items"].as_array().unwrap().iter().map(|it| (&it["dataset"], &it["state"])).collect();
    assert_eq!(states, [(&json!("a"), &json!("fresh")), (&json!("b"), &json!("failing"))]);
    service.stop().await;
    // Mended: it goes on where it was.
    catalog.write(&both.replace(", \"x\"]", "]"));
    database.run("update b set y = 8").await;
    let service = catalog.start(&database).service().await;
    let b = export(&service, "delta", "b", "c").await;
    assert_eq!((&b["schemaChanged"], &b["rowsExported"]), (&json!(true), &json!(1)));
}

#[tokio::test]
async fn datasets_have_lanes_and_watermarks_of_their_own() {
    let database = Database::with_users(20).await;
    database.run("create table a (id int primary key); insert into a values (1)").await;
    let catalog = Catalog::of(
        "[[dataset]]\nname = \"a\"\ntable = \"a\"\n[[dataset]]\nname = \"users\"\ntable = \"users\"\nupdated_at = \"updated_at\"\n\
         exclude = [\"operation_type\"]\ndeleted = \"is_deleted\"\n",
    );
    let service = catalog.serving(&database, &["a"]).await;
    // A job of one dataset that waits keeps no other waiting.
    let held = database.hold_exports().await;
    let waiting = service.submit("full", "c").await;
    export(&service, "full", "a", "c").await;
    held.rollback().await.unwrap();
    assert_eq!(service.ended(&waiting).await["rowsExported"], 18);
    let watermark = async |dataset: &str| {
        let path = format!("/exports/watermark?dataset={dataset}");
        service.call("GET", &path, &[("X-Consumer-ID", "c")]).await.json::<Value>().await.unwrap()["lastExportedAt"]
            .clone()
    };
    assert_ne!(watermark("a").await, watermark("users").await);
    assert_eq!(Some(watermark("users").await), service.watermark("c").await.map(Value::from));
    assert_eq!(service.call("DELETE", "/exports/watermark?dataset=a", &[("X-Consumer-ID", "c")]).await.status(), 204);
    assert!(watermark("a").await.is_null() && watermark("users").await.is_string());
    service.refuses("GET", "/exports/watermark?dataset=b", &[("X-Consumer-ID", "c")], 404, "no_dataset").await;
    let unknown = post(&service, "/exports/full", Some("c"), &json!({ "dataset": "b" })).await;
    assert_eq!(unknown.status(), 400);
    let problem: Value = unknown.json().await.unwrap();
    assert!(problem["field"] == "dataset" && problem["detail"].as_str().unwrap().ends_with("a, users"), "{problem}");

    // A key is its consumer's, whatever the dataset.
    let keyed = async |dataset: &str| {
        let headers = [("X-Consumer-ID", "c"), ("Idempotency-Key", "k")];
        service.post("/exports/full", &headers, &json!({ "dataset": dataset })).await.status().as_u16()
    };
    let (a, users) = tokio::join!(keyed("a"), keyed("users"));
    assert_eq!([a, users].iter().filter(|status| **status == 202).count(), 1, "{a} {users}");
    assert_eq!(a + users, 202 + 422);

    let listed: Value = service.call("GET", "/exports?dataset=a", &[]).await.json().await.unwrap();
    assert!(listed["items"].as_array().unwrap().iter().all(|job| job["dataset"] == "a"));
    let mut pages = Vec::new();
    let mut next = String::new();
    loop {
        let page: Value = service.call("GET", &format!("/consumers?limit=1{next}"), &[]).await.json().await.unwrap();
        pages.push(page["items"][0]["dataset"].clone());
        match page["nextCursor"].as_str() {
            Some(cursor) => next = format!("&cursor={}", cursor.replace('/', "%2F")),
            None => break,
        }
    }
    assert_eq!(pages, ["a", "users"]);
}

#[tokio::test]
async fn ad_hoc_exports_select_rows_and_columns() {
    let database = Database::with_users(40).await;
    database.run("update users set name = 'O''Brien, \"x\"' where id = 3").await;
    let service = Start::on(&database).service().await;
    let selected = async |body: Value| {
        let job = ended(&service, "/exports", None, body.clone()).await;
        assert_eq!((&job["status"], &job["consumerId"]), (&json!("completed"), &Value::Null), "{body} {job}");
        let name = job["outputFilename"].as_str().unwrap();
        assert!(name.starts_with("export_20") && name.ends_with(".csv"), "{name}");
        Csv::read(&service.path(&job))
    };
    let file = selected(json!({ "columns": ["name", "id"], "limit": 3 })).await;
    assert_eq!((file.header.join(","), file.sorted("id")), ("name,id".to_owned(), vec!["1", "2", "3"]));
    for (filter, ids) in [
        (json!([{ "column": "id", "op": "gt", "value": 37 }]), vec![38, 39]),
        (
            json!([{ "column": "id", "op": "gte", "value": "37" }, { "column": "id", "op": "lt", "value": 39 }]),
            vec![37, 38],
        ),
        (json!([{ "column": "id", "op": "in", "value": [1, "2", 400] }]), vec![1, 2]),
        (json!([{ "column": "id", "op": "in", "value": [] }]), vec![]),
        (json!([{ "column": "name", "op": "eq", "value": "O'Brien, \"x\"" }]), vec![3]),
        (json!([{ "column": "name", "op": "eq", "value": "'; drop table users; --" }]), vec![]),
        (json!([{ "column": "updated_at", "op": "lte", "value": "2026-01-01T00:02:00Z" }]), vec![1, 2]),
        (json!([{ "column": "is_deleted", "op": "eq", "value": true }]), vec![]),
        (json!([{ "column": "name", "op": "isNull", "value": true }]), vec![]),
        (
            json!([{ "column": "name", "op": "isNull", "value": false }, { "column": "id", "op": "lte", "value": 1 }]),
            vec![1],
        ),
        (json!([{ "column": "id", "op": "ne", "value": 1 }, { "column": "id", "op": "lt", "value": 4 }]), vec![2, 3]),
    ] {
        assert_eq!(selected(json!({ "filter": filter })).await.ids(), ids, "{filter}");
    }
    assert!(!database.one::<bool>("select exists (select from watermarks)").await);
    let bad = [
        (json!({ "columns": ["nam"] }), "columns[0]"),
        (json!({ "columns": [] }), "columns"),
        (json!({ "columns": ["id", "id"] }), "columns[1]"),
        (json!({ "limit": 0 }), "limit"),
        (json!({ "limit": "3" }), "limit"),
        (json!({ "filter": {} }), "filter"),
        (json!({ "filter": [1] }), "filter[0]"),
        (json!({ "filter": [{ "column": "id", "op": "like", "value": "1" }] }), "filter[0].op"),
        (json!({ "filter": [{ "column": "ids", "op": "eq", "value": "1" }] }), "filter[0].column"),
        (json!({ "filter": [{ "column": "id\" or true --", "op": "eq", "value": "1" }] }), "filter[0].column"),
        (json!({ "filter": [{ "column": "operation_type", "op": "eq", "value": "1" }] }), "filter[0].column"),
        (json!({ "filter": [{ "column": "id", "op": "eq", "value": "x" }] }), "filter[0].value"),
        (json!({ "filter": [{ "column": "id", "op": "eq", "value": null }] }), "filter[0].value"),
        (json!({ "filter": [{ "column": "id", "op": "eq", "value": [1] }] }), "filter[0].value"),
        (json!({ "filter": [{ "column": "id", "op": "in", "value": 1 }] }), "filter[0].value"),
        (json!({ "filter": [{ "column": "id", "op": "in", "value": [1, "x"] }] }), "filter[0].value"),
        (json!({ "filter": [{ "column": "id", "op": "isNull", "value": "true" }] }), "filter[0].value"),
        (json!({ "filter": [{ "column": "updated_at", "op": "eq", "value": "soon" }] }), "filter[0].value"),
        (json!({ "filter": [{ "column": "name", "op": "eq", "value": "a\0b" }] }), "filter[0].value"),
        (json!({ "filter": [{ "column": "id", "op": "eq", "value": 1, "or": 2 }] }), "filter[0].or"),
    ];
    for (body, field) in bad {
        let answer = post(&service, "/exports", None, &body).await;
        assert_eq!(answer.status(), 400, "{body}");
        assert_eq!(answer.json::<Value>().await.unwrap()["field"], field, "{body}");
    }
    // Sent again, a request is what it was, whatever the table is by now.
    let keyed = async || {
        let answer = service.post("/exports", &[("Idempotency-Key", "k")], &json!({ "columns": ["id", "name"] })).await;
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap()["jobId"].clone())
    };
    let first = keyed().await;
    assert_eq!(service.ended(first.1.as_str().unwrap()).await["status"], "completed");
    database.run("alter table users rename column name to called").await;
    assert_eq!((first.0, keyed().await), (202, first));
    // A consumer's export is the whole of it.
    let answer = post(&service, "/exports", Some("c"), &json!({ "limit": 3 })).await;
    assert_eq!(refusal(answer).await, (400, "member_unknown".to_owned()));
}

#[tokio::test]
async fn a_call_that_names_no_dataset_means_users_or_the_only_one() {
    let database = Database::new_with(
        "create table a (id int primary key, at timestamptz not null default now()); insert into a values (1)",
    )
    .await;
    let a = "[[dataset]]\nname = \"a\"\ntable = \"a\"\nupdated_at = \"at\"\n";
    let (b, users) = (a.replace("name = \"a\"", "name = \"b\""), a.replace("name = \"a\"", "name = \"users\""));
    let catalog = Catalog::of(a);
    catalog.track(&database, "a").await;
    let watermark = async |service: &Service, method: &str| {
        service.call(method, "/exports/watermark", &[("X-Consumer-ID", "c")]).await
    };

    // The only one.
    let service = catalog.start(&database).service().await;
    for (path, consumer) in [("/exports/full", Some("c")), ("/exports", None), ("/export/c", None)] {
        let job = ended(&service, path, consumer, json!({})).await;
        assert_eq!((&job["status"], &job["dataset"]), (&json!("completed"), &json!("a")), "{path}");
    }
    assert_eq!(watermark(&service, "GET").await.json::<Value>().await.unwrap()["dataset"], "a");
    let jobs: Value = service.call("GET", "/exports?consumer=c", &[]).await.json().await.unwrap();
    let first = jobs["items"].as_array().unwrap().last().unwrap()["jobId"].as_str().unwrap();
    let since = service.get(&format!("/exports?consumer=c&after={first}")).await;
    assert_eq!((since["items"].as_array().unwrap().len(), &since["items"][0]["dataset"]), (1, &json!("a")), "{since}");
    let arguments = ["export", "full", "--consumer", "d", "--server", &service.address];
    ends(catalog.command(&database, &arguments).await, 0, "");
    assert_eq!(watermark(&service, "DELETE").await.status(), 204);
    service.stop().await;
    ends(catalog.command(&database, &["export", "full", "--consumer", "d"]).await, 0, "");
    let theirs = "select array_agg(dataset) from exports where consumer_id = 'd'";
    assert_eq!(database.one::<Vec<String>>(theirs).await, ["a", "a"]);

    // There are several datasets, and none of them is `users`.
    catalog.write(&format!("{a}{b}"));
    let why = "there are several datasets, and none is called users: name one of a, b";
    let service = catalog.start(&database).service().await;
    for path in ["/exports", "/exports/full", "/exports/incremental", "/exports/delta", "/export/c"] {
        let problem: Value = post(&service, path, Some("c"), &json!({})).await.json().await.unwrap();
        let found = (&problem["status"], &problem["code"], &problem["field"], &problem["detail"]);
        let expected = (&json!(400), &json!("member_invalid"), &json!("dataset"), &json!(format!("dataset: {why}")));
        assert_eq!(found, expected, "{path}");
    }
    let after = "/exports?consumer=c&after=00000000-0000-0000-0000-000000000000";
    for (method, answer) in [
        ("GET", watermark(&service, "GET").await),
        ("DELETE", watermark(&service, "DELETE").await),
        ("after", service.call("GET", after, &[]).await),
    ] {
        let problem: Value = answer.json().await.unwrap();
        let found = (&problem["status"], &problem["code"], &problem["field"], &problem["detail"]);
        let expected = (&json!(400), &json!("parameter_invalid"), &json!("dataset"), &json!(format!("dataset: {why}")));
        assert_eq!(found, expected, "{method}");
    }
    let arguments = ["export", "full", "--consumer", "d", "--server", &service.address];
    ends(catalog.command(&database, &arguments).await, 1, why);
    service.stop().await;
    let (code, _, said) = catalog.command(&database, &["export", "full", "--consumer", "d"]).await;
    assert!(code != 0 && said.contains(why), "{code} {said}");

    // One of several datasets is `users`.
    catalog.write(&format!("{a}{users}"));
    assert_eq!(ended(&catalog.start(&database).service().await, "/exports", None, json!({})).await["dataset"], "users");
}

#[tokio::test]
async fn a_filter_whose_constant_moves_with_the_clock_needs_full_exports() {
    let table =
        "create table t (id int primary key, at timestamp not null default '2026-01-01'); insert into t values (1)";
    let database = Database::empty_with(table).await;
    let by = |filter: &str| format!("[[dataset]]\nname = \"t\"\ntable = \"t\"\nfilter = '''{filter}'''\n");
    let catalog = Catalog::of(&by("true"));
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    for (number, (filter, moves)) in [
        ("at <= ' now'", true),
        ("at <= E'no\\x77'", true),
        ("at <= '2026-01-01' and at::date <@ '[2025-01-01,)'::daterange", false),
        ("at = any ('{2026-01-01}') and lower('A') = 'a'", false),
    ]
    .into_iter()
    .enumerate()
    {
        catalog.write(&by(filter));
        let service = catalog.start(&database).service().await;
        let (consumer, body) = (format!("c{number}"), json!({ "dataset": "t" }));
        let full = ended(&service, "/exports/full", Some(&consumer), body.clone()).await;
        assert_eq!(full["rowsExported"], 1, "{filter}: {full}");
        for export_type in ["incremental", "delta"] {
            let job = ended(&service, &format!("/exports/{export_type}"), Some(&consumer), body.clone()).await;
            match moves {
                true => needs_full(&job, "dataset_changed"),
                false => assert_eq!((&job["status"], &job["continuity"]), (&json!("completed"), &Value::Null), "{job}"),
            }
        }
        service.stop().await;
    }
}

/// The check of a filter makes a temporary table, which an event trigger of the database may forbid.
#[tokio::test]
async fn an_event_trigger_that_forbids_ddl_is_not_blamed_on_the_filter() {
    let database =
        Database::empty_with("create table t (id int primary key, x int); insert into t values (1, 1)").await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\nfilter = \"x > 0\"\n");
    let service = catalog.serving(&database, &["t"]).await;
    let forbid = "create function public.no_ddl() returns event_trigger language plpgsql as
                    $$ begin raise exception 'DDL only by the migration tool'; end $$;
                  create event trigger no_ddl on ddl_command_start execute function public.no_ddl()";
    database.run(forbid).await;
    ends(catalog.command(&database, &["datasets", "check"]).await, 0, "");
    assert_eq!(export(&service, "full", "t", "a").await["rowsExported"], 1);
    service.stop().await;
    database.run("drop event trigger no_ddl").await;
}

#[tokio::test]
async fn another_key_wants_other_triggers() {
    let database = Database::empty_with(
        "create table t (id int primary key, code text not null unique, x int); insert into t values (1, 'a', 1)",
    )
    .await;
    let by = |key: &str| format!("[[dataset]]\nname = \"t\"\ntable = \"t\"\n{key}");
    let catalog = Catalog::of(&by(""));
    let service = catalog.serving(&database, &["t"]).await;
    export(&service, "full", "t", "c").await;
    service.stop().await;
    catalog.write(&by("key = [\"code\"]"));
    let service = catalog.start(&database).service().await;
    let answer = post(&service, "/exports/delta", Some("c"), &json!({ "dataset": "t" })).await;
    assert_eq!(refusal(answer).await, (409, "not_tracked".to_owned()));
    catalog.track(&database, "t").await;
    needs_full(&ended(&service, "/exports/delta", Some("c"), json!({ "dataset": "t" })).await, "dataset_changed");
    let replica = Replica { database: &database, source: "select * from t", key: &["code"] };
    replica.begin(&service, &export(&service, "full", "t", "c").await).await;
    database.run("update t set code = 'b', x = 2; insert into t values (2, 'c', 3)").await;
    let delta = export(&service, "delta", "t", "c").await;
    replica.apply(&service, &delta).await;
    replica.require_equal().await;
    service.stop().await;

    // Back to the primary key: the file names no key.
    catalog.write(&by(""));
    let service = catalog.start(&database).service().await;
    let answer = post(&service, "/exports/full", Some("c"), &json!({ "dataset": "t" })).await;
    assert_eq!(refusal(answer).await, (409, "not_tracked".to_owned()));
    catalog.track(&database, "t").await;
    export(&service, "full", "t", "c").await;
}

#[tokio::test]
async fn the_command_line_knows_the_catalog() {
    let database = Database::empty_with(SALES).await;
    database.run("create table stock (sku text primary key, updated_at timestamptz, created_at timestamptz, is_deleted bool); create table bare (x int); create table empty ()").await;
    let catalog = Catalog::of(LINES);
    assert_eq!(ends(catalog.command(&database, &["datasets", "check"]).await, 0, "").0, "");
    let (_, printed, _) = catalog.command(&database, &["datasets", "list"]).await;
    assert!(printed.contains("untracked") && printed.contains("Region, No., select, note, modified"), "{printed}");
    let (code, _, said) = catalog.command(&database, &["track", "line"]).await;
    assert!(code == 2, "{said}");
    assert!(said.contains("line: there is no dataset `line`; is it `lines`? There are: lines"), "{said}");
    catalog.track(&database, "lines").await;
    ends(catalog.command(&database, &["export", "delta", "--dataset", "lines", "--consumer", "c"]).await, 0, "");
    // The draft of a table is a valid catalog. The file for the draft exists before, and is empty.
    catalog.write("");
    let (code, draft, said) = catalog.command(&database, &["datasets", "add", "stock"]).await;
    assert!(code == 0 && draft.contains("# updated_at = \"updated_at\""), "{draft} {said}");
    assert!(draft.contains("# deleted = \"is_deleted\""), "{draft} {said}");
    let uncommented: String =
        draft.lines().map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or(line))).collect();
    catalog.write(&format!("{LINES}{uncommented}"));
    assert_eq!(catalog.command(&database, &["datasets", "check"]).await.0, 0, "{draft}");
    ends(catalog.command(&database, &["datasets", "add", "empty"]).await, 1, "table: `empty` has no columns");
}

#[tokio::test]
async fn track_looks_at_its_own_dataset_alone() {
    let database =
        Database::empty_with("create table kept (id int primary key, x int); create table gone (id int primary key)")
            .await;
    let of = |name: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\n");
    let wrong = "[[dataset]]\nname = \"part\"\ntable = \"kept\"\ncolumns = [\"id\", \"y\"]\n";
    let catalog = Catalog::of(&[of("gone"), of("kept"), wrong.to_owned()].concat());
    database.run("drop table gone").await;
    let (code, _, said) = catalog.command(&database, &["track", "part"]).await;
    assert!(code == 2 && said.contains("no column `y`") && !said.contains("gone"), "{said}");
    for (command, triggers) in [("track", true), ("untrack", false)] {
        let (code, _, said) = catalog.command(&database, &[command, "kept"]).await;
        let found = "select exists (select from pg_trigger where tgrelid = 'kept'::regclass)";
        assert_eq!((code, database.one::<bool>(found).await), (0, triggers), "{command}: {said}");
        let (code, _, said) = catalog.command(&database, &[command, "gone"]).await;
        assert!(code != 0 && said.contains("there is no table `gone`"), "{command}: {said}");
        catalog.write(&[of("gone"), of("kept")].concat());
    }
    // The triggers are another dataset's as well, wherever that stands in the file.
    database.run("alter table kept add unique (x), alter x set not null").await;
    catalog.write(&[of("kept"), "[[dataset]]\nname = \"x\"\ntable = \"kept\"\nkey = [\"x\"]\n".to_owned()].concat());
    for dataset in ["kept", "x"] {
        ends(catalog.command(&database, &["track", dataset]).await, 2, "which has another key");
    }
}

/// The triggers are missing like after the restore of a dump. A full export without them would need another one.
#[tokio::test]
async fn what_is_not_captured_is_tracked_before_the_full_export() {
    let database = Database::empty().await;
    for name in ["a", "b", "c"] {
        database.run(&format!("create table {name} (id int primary key); insert into {name} values (1)")).await;
    }
    let catalog = Catalog::of_tables(&["a", "b", "c"]);
    let needed = async |service: &Service, dataset: &str, word: &str| {
        let job = ended(service, "/exports/delta", Some("c"), json!({ "dataset": dataset })).await;
        needs_full(&job, word);
        job["error"]["detail"].as_str().unwrap().to_owned()
    };
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    silent(catalog.command(&database, &["datasets", "check"]).await);
    let service = catalog.start(&database).service().await;
    assert!(service.events("not_captured").is_empty());
    for dataset in ["a", "b", "c"] {
        export(&service, "full", dataset, "c").await;
    }
    database.run("update watermarks set cluster_id = cluster_id + 1 where dataset = 'c'").await;
    let detail = needed(&service, "c", "other_cluster").await;
    assert!(!detail.contains("track"), "{detail}");
    let changes = "
        drop table a; create table a (id int primary key); alter table b disable trigger user; alter table c disable trigger user;
        update watermarks set guard_state = jsonb_set(guard_state, '{database}', '\"1\"') where dataset = 'b'";
    database.run(changes).await;
    for (dataset, word) in [("a", "table_recreated"), ("b", "database_restored"), ("c", "other_cluster")] {
        let detail = needed(&service, dataset, word).await;
        let (before, after) = detail.split_once(&format!("`cdc-export track {dataset}`")).expect(&detail);
        assert!(before.contains(word) && after.contains("full export"), "{detail}");
    }
    service.stop().await;
    catalog.track(&database, "b").await;
    let (code, printed, said) = catalog.command(&database, &["datasets", "check"]).await;
    assert_eq!((code, printed.as_str()), (2, "1 dataset fits its table: b\n"), "{said}");
    let grouped = "a, c: capture: the changes are no longer captured, as after a restore of the database: ";
    assert!(said.contains(&format!("{grouped}`cdc-export track a c`")), "{said}");
    let service = catalog.start(&database).service().await;
    let warned: Vec<_> = service.events("not_captured").iter().map(|it| it["dataset"].clone()).collect();
    assert_eq!(warned, ["a", "c"]);
}

/// Each completed job saves the columns of its file, their types, and the key. This also holds after a DDL change of a
/// table.
#[tokio::test]
async fn a_job_keeps_the_columns_of_its_file() {
    let database = Database::empty_with("create table t (no numeric(8,2), code varchar(5), at inet, gone boolean not null default false, primary key (code, no))")
    .await;
    database.run("insert into t values (1.5, 'a', '10.0.0.1'), (2.5, 'b', null)").await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\ndeleted = \"gone\"\n");
    let service = catalog.serving(&database, &["t"]).await;
    let saved = async |job: &Value, types: &[&str]| {
        let id = job["jobId"].as_str().unwrap();
        let text = format!("select file_columns::text from cdc_export.exports where job = '{id}'");
        let saved: Value = serde_json::from_str(&database.one::<String>(&text).await).unwrap();
        let columns = saved["columns"].as_array().unwrap();
        let names: Vec<_> = columns.iter().map(|column| column["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, Csv::read(&service.path(job)).header, "{saved}");
        assert_eq!(columns.iter().map(|column| &column["type"]).collect::<Vec<_>>(), types, "{saved}");
        assert_eq!(saved["key"], json!(["code", "no"]));
        columns.iter().map(|column| column["wire"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let full = export(&service, "full", "t", "c").await;
    let sent = saved(&full, &["numeric(8,2)", "character varying(5)", "inet", "boolean"]).await;
    assert_eq!(sent, ["binary", "binary", "text", "binary"]);
    database.run("alter table t add column more jsonb; alter table t drop column at; update t set more = '{}'").await;
    let delta = export(&service, "delta", "t", "c").await;
    assert_eq!(delta["rowsExported"], 2);
    saved(&delta, &["text", "numeric(8,2)", "character varying(5)", "boolean", "jsonb"]).await;
    // The earlier job's are as they were, and a selection has its own.
    saved(&full, &["numeric(8,2)", "character varying(5)", "inet", "boolean"]).await;
    let some = ended(&service, "/exports", None, json!({ "dataset": "t", "columns": ["more", "code"] })).await;
    saved(&some, &["jsonb", "character varying(5)"]).await;
}

/// Nobody would notice soon that a copy lacks the rows that a column seems to mark as deleted. A search for new times
/// without an index would read the whole table at each export.
#[tokio::test]
async fn what_a_draft_guesses_at_a_cost_is_a_comment_with_the_reason() {
    let schema = "
        create table stock (id int primary key, created_at timestamptz, updated_at timestamptz, deleted_at timestamptz);
        create index on stock (created_at, updated_at); create index on stock (updated_at) where id > 1;
        insert into stock select n, now(), now(), case when n <= 3 then now() end from generate_series(1, 10) n;
        create table flags (id int primary key, modified timestamp, deleted bool); create index on flags (modified, id);
        insert into flags values (1, now(), true), (2, now(), false), (3, now(), null)";
    let database = Database::empty_with(schema).await;
    let catalog = Catalog::of("");
    let (draft, _) = ends(catalog.command(&database, &["datasets", "add", "stock"]).await, 0, "");
    let lines: Vec<_> = draft.lines().skip(5).collect();
    let whole_table = "no index begins with it: each incremental and delta would read the whole table";
    assert_eq!(
        lines,
        [
            &format!("# updated_at = \"updated_at\"  # {whole_table}"),
            "# created_at = \"created_at\"",
            "# operation = \"timestamps\"",
            "# deleted = \"deleted_at\"  # would leave marked rows out of full exports, and make them a delta's DELETE",
        ]
    );
    let (_, draft, _) = catalog.command(&database, &["datasets", "add", "flags"]).await;
    let lines: Vec<_> = draft.lines().skip(5).collect();
    assert_eq!(
        lines,
        [
            "updated_at = \"modified\"",
            "# deleted = \"deleted\"  # would leave marked rows out of full exports, and make them a delta's DELETE",
        ]
    );
    let text = std::fs::read_to_string(catalog.path()).unwrap();
    catalog.write(&text.replacen("# updated_at", "updated_at", 1));
    let (code, _, said) = catalog.command(&database, &["datasets", "check"]).await;
    let warned = "stock: no index begins with `updated_at`: each incremental and delta reads the whole table";
    assert!(code == 0 && said.contains(warned) && !said.contains("`modified`"), "{said}");
    let service = catalog.serving(&database, &["stock", "flags"]).await;
    assert_eq!(export(&service, "full", "stock", "c").await["rowsExported"], 10, "none is left out");
}
