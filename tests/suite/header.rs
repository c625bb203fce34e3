//! The header of files: renamed columns, another name for `operation`, and the columns of `meta`.

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export, submit};
use crate::harness::{Csv, Database, Service, Start, ends, silent};
use crate::mirrors::Mirror;
use crate::restores::cluster::Cluster;

const META: &str = "meta = [\"order\", \"xid\", \"committed_at\", \"operation\"]\n";

/// A dataset without times, one with both times, and one that is captured by times.
fn file() -> String {
    let block = |name: &str, rest: &str| {
        format!(
            "[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\nrename = {{ cust_nm = \"Customer Name\" }}\n{rest}{META}"
        )
    };
    let times = "updated_at = \"updated_at\"\ncreated_at = \"created_at\"\noperation = \"timestamps\"\n";
    block("plain", "operation_column = \"_op\"\n")
        + &block("timed", times)
        + &block("polled", "updated_at = \"updated_at\"\ncapture = \"timestamp\"\n")
}

const TABLES: &str = "
    create table plain (id int primary key, cust_nm text);
    create table timed (like plain including all, updated_at timestamptz default now(), created_at timestamptz default now());
    create table polled (like timed including all);
    insert into plain select n, 'name ' || n from generate_series(1, 4) n;
    create table xids (name text, xid bigint);
    insert into timed select * from plain; insert into polled select * from plain;";

const CHANGES: &str = "
    update {table} set cust_nm = 'first' {touch} where id = 1; update {table} set cust_nm = 'second' {touch} where id = 1;
    delete from {table} where id = 2; insert into {table} values (5, 'new')";

async fn started(database: &Database) -> (Catalog, Service) {
    database.run(TABLES).await;
    let catalog = Catalog::of(&file());
    ends(catalog.command(database, &["track", "--all"]).await, 0, "");
    let service = catalog.start(database).with("MANIFESTS", "on").service().await;
    (catalog, service)
}

/// Makes the changes, each statement in a transaction of its own. Returns the transactions.
async fn change(database: &Database, table: &str) -> Vec<i64> {
    let touch = if table == "timed" { ", updated_at = clock_timestamp()" } else { "" };
    for statement in CHANGES.replace("{table}", table).replace("{touch}", touch).split(';') {
        let statements = format!("{statement}; insert into xids values ('{table}', pg_current_xact_id()::text::int8)");
        database.run(&statements).await;
    }
    database.one(&format!("select array_agg(xid order by xid) from xids where name = '{table}'")).await
}

/// The rows of a job by their ids: the operation of a delta, and the columns of `meta` without the time.
fn meta(service: &Service, job: &Value) -> Vec<String> {
    let csv = Csv::read(&service.path(job));
    let at = |name: &str| csv.header.iter().position(|column| column == name);
    let [id, order, xid, operation] = ["id", "_order", "_xid", "_operation"].map(|name| at(name).unwrap());
    let first = at("_op").or(at("operation"));
    let text = |row: &Vec<String>| {
        let first = first.map(|at| format!("{} ", row[at])).unwrap_or_default();
        format!("{} {first}{} {} {}", row[id], row[order], row[xid], row[operation])
    };
    let mut rows: Vec<_> = csv.rows.iter().map(text).collect();
    rows.sort();
    rows
}

#[tokio::test]
async fn each_export_says_its_place_and_the_transactions_of_its_rows() {
    let database = Database::empty().await;
    let (_catalog, service) = started(&database).await;
    for dataset in ["plain", "timed", "polled"] {
        for consumer in ["deltas", "increments"] {
            let full = export(&service, "full", dataset, consumer).await;
            assert_eq!(meta(&service, &full), [1, 2, 3, 4].map(|id| format!("{id} 1  READ")), "{dataset}");
            assert_eq!(full["order"], 1);
        }
        let [_, updated, deleted, inserted] = change(&database, dataset).await[..] else { panic!("four statements") };
        let delta = export(&service, "delta", dataset, "deltas").await;
        let expected = match dataset {
            // All rows of the overlap. By times alone, nothing tells a new row from a changed one, nor a deleted one.
            "polled" => [1, 3, 4, 5].map(|id| format!("{id} UPDATE 2  UPDATE")).to_vec(),
            _ => vec![
                format!("1 UPDATE 2 {updated} UPDATE"),
                format!("2 DELETE 2 {deleted} DELETE"),
                format!("5 INSERT 2 {inserted} INSERT"),
            ],
        };
        assert_eq!(meta(&service, &delta), expected, "{dataset}");
        let increments = export(&service, "incremental", dataset, "increments").await;
        let live = expected.iter().filter(|row| !row.contains("DELETE"));
        let live: Vec<_> = live.map(|row| row.replacen("UPDATE ", "", 1).replacen("INSERT ", "", 1)).collect();
        assert_eq!(meta(&service, &increments), live, "{dataset}");

        let manifest = service.get(&format!("/exports/{}/manifest", delta["jobId"].as_str().unwrap())).await;
        let columns = manifest["export"]["columns"].as_array().unwrap();
        let said: Vec<_> = columns.iter().filter_map(|column| column["meta"].as_str()).collect();
        assert_eq!(manifest["export"]["order"], "2");
        assert_eq!(said[..], ["order", "xid", "committed_at", "operation"][..]);
        assert_eq!(columns[2]["name"], "Customer Name", "{manifest}");

        // An export without a consumer has nobody's position.
        let body = json!({ "dataset": dataset, "columns": ["cust_nm", "id"], "filter": [{ "column": "id", "op": "eq", "value": 3 }] });
        let found = ended(&service, "/exports", None, body).await;
        assert_eq!((meta(&service, &found), &found["order"]), (vec!["3   READ".to_owned()], &json!(null)));
        assert_eq!(Csv::read(&service.path(&found)).header[..2], ["Customer Name", "id"]);
    }
    // A job that ended without a file has a place, too. The next one is behind it.
    let held = database.open("lock table plain in access exclusive mode").await;
    let id = submit(&service, "/exports/delta", Some("deltas"), json!({ "dataset": "plain" })).await;
    assert!(service.call("POST", &format!("/exports/{id}/cancel"), &[]).await.status().is_success());
    held.rollback().await.unwrap();
    assert_eq!(service.ended(&id).await["order"], json!(null));
    assert_eq!(export(&service, "delta", "plain", "deltas").await["order"], 4);
}

#[tokio::test]
async fn every_format_has_the_columns_of_meta() {
    let database = Database::empty().await;
    let (_catalog, service) = started(&database).await;
    for format in ["csv", "ndjson", "parquet"] {
        if format == "parquet" && !cfg!(feature = "parquet") {
            continue;
        }
        for export_type in ["full", "incremental", "delta"] {
            database.run("update plain set cust_nm = cust_nm || '.'").await;
            let body = json!({ "dataset": "plain", "format": format });
            let job = ended(&service, &format!("/exports/{export_type}"), Some(format), body).await;
            assert_eq!((&job["status"], &job["rowsExported"]), (&json!("completed"), &json!(4)), "{job}");
            if format == "ndjson" {
                let text = std::fs::read_to_string(service.path(&job)).unwrap();
                let row: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
                assert_eq!(row["_order"], job["order"], "{row}");
                assert_eq!(row["_xid"].is_i64(), export_type != "full", "{row}");
            }
        }
    }
}

#[tokio::test]
async fn the_time_of_a_commit_is_there_where_the_server_tracks_it() {
    let mut cluster = Cluster::with(&["track_commit_timestamp = on"]).await;
    let database = cluster.database();
    let (_catalog, service) = started(&database).await;
    export(&service, "full", "plain", "a").await;
    database.run("delete from plain where id = 1; insert into plain values (9, 'nine')").await;
    let csv = Csv::read(&service.path(&export(&service, "delta", "plain", "a").await));
    let at = csv.header.iter().position(|column| column == "_committed_at").unwrap();
    let committed: String = database.one("select pg_xact_commit_timestamp(xmin)::text from plain where id = 9").await;
    for row in &csv.rows {
        let same = format!("select '{}'::timestamptz = '{committed}'::timestamptz", row[at]);
        assert!(database.one::<bool>(&same).await, "{row:?} {committed}");
    }
    assert_eq!(csv.rows.len(), 2);
    service.stop().await;
    cluster.stop().await;
}

#[tokio::test]
async fn names_that_clash_are_refused() {
    let database =
        Database::empty_with("create table t (id int primary key, name text, operation text, \"Name\" text)").await;
    let catalog = Catalog::of("");
    for (members, why) in [
        ("", "`operation` in files"),
        ("exclude = [\"operation\"]\nrename = { name = \"OPERATION\" }", "`OPERATION` in files, too"),
        ("exclude = [\"operation\"]\nrename = { name = \"ID\" }", "`ID` in files"),
        ("exclude = [\"operation\"]\nrename = { absent = \"x\" }", "there is no column `absent`"),
        ("exclude = [\"operation\"]\nrename = { name = \"_ORDER\" }\nmeta = [\"order\"]", "`_ORDER` in files"),
        ("exclude = [\"operation\"]\nrename = { name = \"\" }", "has 1 to 63 bytes"),
        ("exclude = [\"operation\"]\nrename = { name = \"ctid\" }", "can't have a column `ctid`"),
        ("operation_column = \"xmin\"", "can't have a column `xmin`"),
        ("operation_column = \"name\"", "`name` in files"),
        (
            "operation_column = \"_XID\"\nexclude = [\"operation\"]\nmeta = [\"xid\"]",
            "a delta's first column has the name `_xid`",
        ),
        ("operation_column = \"_op\"\nmeta = [\"order\", \"order\"]", "a column is named twice"),
        ("operation_column = \"_op\"\nmeta = [\"rank\"]", "order, xid, committed_at, operation"),
        ("capture = \"none\"\noperation_column = \"_op\"", "leave it out"),
    ] {
        catalog.write(&format!("[[dataset]]\nname = \"t\"\ntable = \"t\"\n{members}\n"));
        ends(catalog.command(&database, &["datasets", "check"]).await, 2, why);
    }
    // The table itself may have names that differ by case alone.
    for members in ["operation_column = \"_op\"", "rename = { operation = \"what\" }", "capture = \"none\""] {
        catalog.write(&format!("[[dataset]]\nname = \"t\"\ntable = \"t\"\n{members}\n"));
        let (_, _, said) = catalog.command(&database, &["datasets", "check"]).await;
        assert!(!said.contains("in files"), "{members}: {said}");
    }
}

#[tokio::test]
async fn another_header_is_told_and_needs_no_full_export() {
    let database =
        Database::empty_with("create table t (id int primary key, name text); insert into t values (1, 'one')").await;
    let block = "[[dataset]]\nname = \"t\"\ntable = \"t\"\n";
    let catalog = Catalog::of(block);
    catalog.track(&database, "t").await;
    for (at, members) in ["", "rename = { name = \"title\" }\n", "operation_column = \"op\"\n", META].iter().enumerate()
    {
        catalog.write(&format!("{block}{members}"));
        let service = catalog.start(&database).service().await;
        for is_first in [true, false] {
            let job = export(&service, "delta", "t", "a").await;
            assert_eq!(job["schemaChanged"], json!(is_first && at > 0), "{members}: {job}");
        }
    }
}

#[tokio::test]
async fn a_name_that_passes_to_another_column_needs_a_full_export() {
    let database = Database::empty_with("create table t (a int, b int, c int, at timestamptz default now(), primary key (a, b)); insert into t values (1, 2, 3)")
    .await;
    let block = |name: &str, members: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"t\"\n{members}\n");
    let polled = "updated_at = \"at\"\ncapture = \"timestamp\"\n";
    let file = |members: &str| block("logged", members) + &block("polled", &format!("{polled}{members}"));
    let catalog = Catalog::of(&file(""));
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    for (members, needs_full) in [
        ("", false),
        ("rename = { a = \"b\", b = \"a\" }", true),
        ("rename = { a = \"b\", b = \"A\" }", false),
        ("exclude = [\"c\"]", true),
        // The name of a column that is left out is free since the last export.
        ("rename = { a = \"c\" }\nexclude = [\"c\"]", false),
        ("rename = { b = \"c\" }\nexclude = [\"c\"]", true),
    ] {
        catalog.write(&file(members));
        let service = catalog.start(&database).service().await;
        for (dataset, export_type) in [("logged", "delta"), ("polled", "incremental")] {
            let body = json!({ "dataset": dataset });
            let job = ended(&service, &format!("/exports/{export_type}"), Some("c"), body).await;
            let code = if needs_full { json!("full_export_needed") } else { json!(null) };
            assert_eq!(job["error"]["code"], code, "{members}: {job}");
            assert_eq!(job["continuity"].as_str(), needs_full.then_some("dataset_changed"), "{members}: {job}");
            export(&service, "full", dataset, "c").await;
        }
    }
}

#[tokio::test]
async fn the_watermark_moves_where_the_operation_has_the_name_of_the_time() {
    let database = Database::empty_with(
        "create table t (id int primary key, at timestamptz default now()); insert into t values (1)",
    )
    .await;
    let members = "updated_at = \"at\"\nrename = { at = \"changed\" }\noperation_column = \"at\"\n";
    let catalog = Catalog::of(&format!("[[dataset]]\nname = \"t\"\ntable = \"t\"\n{members}"));
    let service = catalog.serving(&database, &["t"]).await;
    for id in [2, 3] {
        let job = export(&service, "delta", "t", "a").await;
        let last: String =
            database.one("select to_char(max(at) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') from t").await;
        assert!(job["watermarkTo"].as_str().is_some_and(|at| at.starts_with(&last)), "{job} {last}");
        database.run(&format!("insert into t values ({id})")).await;
    }
}

/// A consumer takes for the newest what has the largest `_order`, whatever the database has forgotten.
#[tokio::test]
async fn the_order_never_goes_back_after_a_restore() {
    let mut cluster = Cluster::new().await;
    let database = cluster.database();
    let (catalog, mut service) = started(&database).await;
    let on = |cluster: &Cluster, service: &Service| {
        catalog.start(&cluster.database()).with("MANIFESTS", "on").sharing_output(service)
    };
    export(&service, "full", "plain", "a").await;
    service.end().await;
    cluster.copy_cold().await;
    let mut service = on(&cluster, &service).service().await;
    for order in 2..=4 {
        cluster.database().run("update plain set cust_nm = cust_nm || '.'").await;
        assert_eq!(export(&service, "delta", "plain", "a").await["order"], order);
    }
    service.end().await;
    cluster.put_back().await;
    let start: Start = on(&cluster, &service).arguments(&["serve", "--no-workers"]);
    let mut submitting = start.service().await;
    let mut waiting = Vec::new();
    for export_type in ["full", "delta"] {
        let path = format!("/exports/{export_type}");
        waiting.push(submit(&submitting, &path, Some("a"), json!({ "dataset": "plain" })).await);
    }
    submitting.end().await;
    let service = on(&cluster, &service).service().await;
    let mut last = 4;
    for id in waiting {
        let job = service.ended(&id).await;
        assert_eq!(job["attempt"], 1, "{job}");
        let order = job["order"].as_i64().unwrap();
        assert_eq!(order, last + 1, "{job}");
        let rows = meta(&service, &job);
        assert!(rows.iter().all(|row| row.contains(&format!(" {order} "))), "{rows:?}");
        last = order;
    }
    assert_eq!(export(&service, "delta", "plain", "a").await["order"], last + 1);
    service.stop().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_copy_has_the_renamed_columns_and_those_of_meta_if_asked() {
    let block = |members: &str| format!("[[dataset]]\nname = \"t\"\ntable = \"sales.t\"\n{members}");
    let statements = "create schema sales; create table sales.t (id int primary key, cust_nm text);
        create table sales.keyless (n int); insert into sales.keyless select generate_series(1, 5);
        insert into sales.t select n, 'name ' || n from generate_series(1, 9) n;";
    let keyless = format!("[[dataset]]\nname = \"keyless\"\ntable = \"sales.keyless\"\ncapture = \"none\"\n{META}");
    let file =
        block(&format!("rename = {{ id = \"key\", cust_nm = \"name\" }}\noperation_column = \"cust_nm\"\n{META}"))
            + &keyless;
    let mirror = Mirror::of_file(&file, statements).await;
    let columns = async |table: &str| {
        let found =
            "select string_agg(attname, ' ' order by attnum) from pg_attribute where attnum > 0 and not attisdropped
                     and attrelid = to_regclass('{table}')";
        mirror.target.one::<String>(&found.replace("{table}", table)).await
    };
    let equals = async |what: &str| {
        let source = "select string_agg(id || ' ' || cust_nm, ', ' order by id) from sales.t";
        let copy = "select string_agg(key || ' ' || name, ', ' order by key) from sales.t";
        assert_eq!(mirror.target.one::<String>(copy).await, mirror.source.one::<String>(source).await, "{what}");
        assert_eq!(mirror.target.one::<i64>("select count(*) from sales.keyless").await, 5, "{what}");
    };
    let change =
        "delete from sales.t where id = (select max(id) from sales.t); update sales.t set cust_nm = cust_nm || '.'";
    for what in ["a new table", "a merge", "another merge"] {
        mirror.applies_all(what).await;
        equals(what).await;
        assert_eq!(columns("sales.t").await, "key name", "{what}");
        assert_eq!(columns("sales.keyless").await, "n", "{what}");
        mirror.source.run(change).await;
    }
    export(&mirror.service, "full", "t", "a").await;
    silent(mirror.apply(&["--dataset", "t"]).output().await);
    equals("a full export").await;

    // Kept from now on: the table lacks them, and a delta would lack their values in unchanged rows.
    mirror.source.run(change).await;
    export(&mirror.service, "delta", "t", "a").await;
    ends(mirror.apply(&["--dataset", "t", "--meta", "--request", "none"]).output().await, 1, "_order");
    ends(mirror.apply(&["--all-datasets", "--meta"]).output().await, 0, "");
    equals("with meta").await;
    assert_eq!(columns("sales.t").await, "key name _order _xid _committed_at _operation");
    mirror.source.run(change).await;
    silent(mirror.apply(&["--all-datasets", "--meta"]).output().await);
    equals("a delta with meta").await;
    let have_meta = "select bool_and(_xid is not null and _operation = 'UPDATE') from sales.t";
    assert!(mirror.target.one::<bool>(have_meta).await);
}
