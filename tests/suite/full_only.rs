//! Datasets with `capture = "none"`: full exports of views, foreign tables and tables without a key.

use serde_json::{Value, json};
use sqlx::Connection;

use crate::batches::export_all;
use crate::catalog::{Catalog, ended, export, post};
use crate::harness::{Csv, Database, Service, eventually, refusal};
use crate::mirrors::Mirror;
use crate::schedules::becomes;

const SHOP: &str = "
    create table factor (n int not null);
    insert into factor values (2);
    create function twice(n int) returns int language plpgsql as 'begin return n * (select f.n from factor f); end';
    create schema shop;
    create table shop.orders (id int primary key, total int);
    insert into shop.orders select n, n % 3 from generate_series(1, 30) n;
    create table shop.bare (n int, operation text);
    insert into shop.bare values (1, 'a'), (1, 'a'), (null, null);
    create view shop.totals as select total, public.twice(total) as twice, count(*) from shop.orders group by total;
    create materialized view shop.daily as select * from shop.orders;
    create unlogged table shop.cache (id int primary key);
    insert into shop.cache values (7);
    create table shop.parent (id int primary key, note text);
    create table shop.child () inherits (shop.parent);
    insert into shop.parent values (1); insert into shop.child values (1);";

const UNCAPTURED: [&str; 5] = ["bare", "cache", "daily", "parent", "totals"];

fn block(name: &str) -> String {
    format!("[[dataset]]\nname = \"{name}\"\ntable = \"shop.{name}\"\ncapture = \"none\"\n")
}

/// The file of all datasets, of which `orders` is captured.
fn file() -> String {
    "[[dataset]]\nname = \"orders\"\ntable = \"shop.orders\"\n".to_owned() + &UNCAPTURED.map(block).concat()
}

async fn shop() -> (Database, Catalog, Service) {
    let database = Database::empty().await;
    database.run(SHOP).await;
    let catalog = Catalog::of(&file());
    let (code, _, said) = catalog.command(&database, &["track", "--all"]).await;
    assert_eq!(code, 0, "{said}");
    let service = catalog.start(&database).with("MANIFESTS", "on").service().await;
    (database, catalog, service)
}

fn rows(service: &Service, job: &Value) -> Vec<String> {
    let mut rows: Vec<_> = Csv::read(&service.path(job)).rows.into_iter().map(|row| row.join(",")).collect();
    rows.sort();
    rows
}

#[tokio::test]
async fn anything_that_has_rows_is_exported_in_full() {
    let (database, catalog, service) = shop().await;
    let (code, printed, said) = catalog.command(&database, &["datasets", "check"]).await;
    assert!(code == 0 && printed.contains("6 datasets fit their tables"), "{printed} {said}");
    let first = export(&service, "full", "totals", "a").await;
    assert_eq!(rows(&service, &first), ["0,0,10", "1,2,10", "2,4,10"]);
    let manifest = format!("/exports/{}/manifest", first["jobId"].as_str().unwrap());
    let manifest: Value = service.call("GET", &manifest, &[]).await.json().await.unwrap();
    assert_eq!(manifest["export"]["key"], json!([]), "{manifest}");
    database.run("delete from shop.orders where total = 1; refresh materialized view shop.daily").await;
    let after = json!({ "dataset": "totals", "after": first["jobId"] });
    let second = ended(&service, "/exports/full", Some("a"), after).await;
    assert_eq!((&second["number"], rows(&service, &second)), (&json!(2), vec!["0,0,10".to_owned(), "2,4,10".into()]));
    for (dataset, count) in [("bare", 3), ("cache", 1), ("daily", 20), ("parent", 2)] {
        assert_eq!(export(&service, "full", dataset, "a").await["rowsExported"], count, "{dataset}");
    }
    assert_eq!(
        rows(&service, &export(&service, "full", "bare", "a").await),
        ["", "1,a", "1,a"].map(|row| { if row.is_empty() { ",".to_owned() } else { row.to_owned() } })
    );
    for export_type in ["incremental", "delta"] {
        let refused =
            post(&service, &format!("/exports/{export_type}"), Some("a"), &json!({ "dataset": "bare" })).await;
        assert_eq!(refusal(refused).await, (409, "full_only".to_owned()), "{export_type}");
    }
    let listed: Value = service.call("GET", "/datasets", &[]).await.json().await.unwrap();
    let of = |name: &str| listed["items"].as_array().unwrap().iter().find(|it| it["name"] == name).unwrap().clone();
    let (bare, parent) = (of("bare"), of("parent"));
    assert_eq!((&bare["capture"], &bare["key"], &bare["ready"]), (&json!("none"), &json!([]), &json!(true)), "{bare}");
    assert_eq!(parent["key"], json!(["id"]), "{parent}");
    let consumers: Value = service.call("GET", "/consumers?consumer=a", &[]).await.json().await.unwrap();
    assert!(consumers["items"].as_array().unwrap().iter().all(|it| it["rowsWaiting"].is_null()), "{consumers}");
    assert!(service.events("table_unreadable").is_empty());
    service.stop().await;
}

#[tokio::test]
async fn a_caller_selects_rows_and_columns_of_a_view() {
    let (_database, _catalog, service) = shop().await;
    let filter = json!([{ "column": "twice", "op": "gt", "value": 0 }]);
    let body = json!({ "dataset": "totals", "columns": ["twice"], "filter": filter });
    let job = ended(&service, "/exports", None, body).await;
    assert_eq!(rows(&service, &job), ["2", "4"], "{job}");
    let job = ended(&service, "/exports", None, json!({ "dataset": "bare", "limit": 2 })).await;
    assert_eq!(job["rowsExported"], 2, "{job}");
    let body = json!({ "dataset": "totals", "filter": [{ "column": "twice", "op": "gt", "value": "x" }] });
    assert_eq!(refusal(post(&service, "/exports", None, &body).await).await.0, 400);
    service.stop().await;
}

#[tokio::test]
async fn a_batch_heals_what_has_full_exports_alone() {
    let (_database, _catalog, service) = shop().await;
    let all = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    assert_eq!((&all["status"], all["jobs"].as_array().unwrap().len()), (&json!("completed"), 1), "{all}");
    let left_out: Vec<_> = all["leftOut"].as_array().unwrap().iter().map(|it| &it["reason"]).collect();
    assert_eq!(left_out, ["full_only"; 5], "{all}");
    let named = json!({ "datasets": ["orders", "totals"] });
    let problem: Value = post(&service, "/exports/delta", Some("a"), &named).await.json().await.unwrap();
    assert!(problem["status"] == 409 && problem["code"] == "full_only", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("totals"), "{problem}");
    let healed = export_all(&service, "delta", json!({ "datasets": "*", "heal": true })).await;
    let members: Vec<_> = healed["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| {
            assert_eq!(job["status"], "completed", "{job}");
            (job["dataset"].as_str().unwrap(), job["exportType"].as_str().unwrap())
        })
        .collect();
    let full = |name| (name, "full");
    let expected = [full("bare"), full("cache"), full("daily"), ("orders", "delta"), full("parent"), full("totals")];
    assert_eq!(members, expected);
    service.stop().await;
}

#[tokio::test]
async fn a_schedule_asks_for_what_the_dataset_can_have() {
    let database = Database::empty().await;
    database.run(SHOP).await;
    let schedule = |name: &str, more: &str| {
        format!(
            "[[schedule]]\nname = \"{name}\"\nconsumer = \"{name}\"\ndataset = \"totals\"\nevery = \"366d\"\ntype = \"delta\"\n{more}\n"
        )
    };
    let catalog = Catalog::of(&(file() + &schedule("never", "") + &schedule("heals", "heal = true")));
    let service = catalog.start(&database).service().await;
    let never = becomes(&service, "never", "it is refused", |it| it["refused"].is_string()).await;
    assert_eq!(never["refused"], "full_only", "{never}");
    let healed = becomes(&service, "heals", "it runs", |it| it["lastJob"]["status"] == "completed").await;
    assert_eq!(healed["lastJob"]["exportType"], "full", "{healed}");
    service.stop().await;
}

/// No row of a table is lost between the lock and the snapshot: what a view reads is locked before it.
#[tokio::test]
async fn an_export_of_a_view_waits_for_who_changes_its_tables() {
    let (database, _catalog, service) = shop().await;
    let mut conn = database.pool.acquire().await.unwrap();
    let mut tx = conn.begin().await.unwrap();
    sqlx::raw_sql("truncate shop.orders; insert into shop.orders values (1, 1)").execute(&mut *tx).await.unwrap();
    let submitted: Value =
        post(&service, "/exports/full", Some("a"), &json!({ "dataset": "totals" })).await.json().await.unwrap();
    eventually("the export waits for the lock", async || {
        let waits = "select exists (select from pg_locks where not granted and relation = 'shop.orders'::regclass)";
        database.one::<bool>(waits).await.then_some(())
    })
    .await;
    tx.commit().await.unwrap();
    let job = service.ended(submitted["jobId"].as_str().unwrap()).await;
    assert_eq!(rows(&service, &job), ["1,2,1"], "{job}");
    service.stop().await;
}

#[tokio::test]
async fn a_dataset_that_loses_or_gains_its_capture_begins_with_a_full_export() {
    let (database, catalog, service) = shop().await;
    export(&service, "full", "orders", "a").await;
    service.stop().await;
    let captured = file();
    let uncaptured = captured.replace("shop.orders\"\n", "shop.orders\"\ncapture = \"none\"\n");
    catalog.write(&uncaptured);
    let service = catalog.start(&database).service().await;
    export(&service, "full", "orders", "a").await;
    service.stop().await;
    catalog.write(&captured);
    let service = catalog.start(&database).service().await;
    let job = ended(&service, "/exports/delta", Some("a"), json!({ "dataset": "orders" })).await;
    assert_eq!((&job["error"]["code"], &job["continuity"]), (&json!("full_export_needed"), &json!("dataset_changed")));
    export(&service, "full", "orders", "a").await;
    export(&service, "delta", "orders", "a").await;
    service.stop().await;
}

#[tokio::test]
async fn what_the_service_cant_capture_is_refused_or_drafted() {
    let database = Database::empty().await;
    database.run(SHOP).await;
    let catalog = Catalog::of("");
    for (table, why) in [("totals", "is a view"), ("daily", "is a materialized view"), ("bare", "no primary key")] {
        catalog.write(&block(table).replace("capture = \"none\"\n", ""));
        let (code, _, said) = catalog.command(&database, &["datasets", "check"]).await;
        assert!(code == 2 && said.contains(why) && said.contains("capture = \"none\""), "{table}: {said}");
        catalog.write("");
        let added = ["datasets", "add", &format!("shop.{table}")];
        let (code, draft, said) = catalog.command(&database, &added).await;
        assert!(code == 0 && draft.contains("\ncapture = \"none\"\n") && said.contains("nothing to track"), "{said}");
        catalog.write(&draft);
        let (code, _, said) = catalog.command(&database, &["datasets", "check"]).await;
        assert_eq!(code, 0, "{draft} {said}");
    }
    for (member, value) in [("updated_at", "\"x\""), ("operation", "\"log\""), ("overlap", "\"5m\"")] {
        catalog.write(&format!("{}{member} = {value}\n", block("totals")));
        let (code, _, said) = catalog.command(&database, &["datasets", "check"]).await;
        assert!(code == 2 && said.contains(member), "{said}");
    }
    // A pattern takes tables without a key, and no view.
    catalog.write("[[tables]]\nmatch = [\"shop.*\"]\ncapture = \"none\"\n");
    let (code, printed, said) = catalog.command(&database, &["datasets", "check"]).await;
    assert!(
        code == 0 && printed.contains("5 datasets fit their tables: bare, cache, child, orders, parent"),
        "{printed}"
    );
    assert!(said.contains("shop.totals: no dataset: it is a view"), "{said}");
}

#[tokio::test]
async fn a_copy_of_anything_is_replaced_in_one_transaction() {
    let mirror = Mirror::of_file(&file().replace("shop.", "sales."), &SHOP.replace("shop", "sales")).await;
    let copied = ["bare", "cache", "daily", "orders", "totals"];
    let datasets: Vec<_> = copied.iter().flat_map(|name| ["--dataset", name]).collect();
    let apply = async |more: &[&str]| {
        let (code, printed, said) = mirror.apply(&[&datasets[..], more].concat()).output().await;
        assert_eq!((code, said.as_str()), (0, ""), "{printed}");
        mirror.require_all_equal(&copied).await;
    };
    // `operation` is a column of the table.
    apply(&[]).await;
    let change = "insert into sales.bare values (1, 'a'); delete from sales.orders where id < 5;
                  update factor set n = n + 1; refresh materialized view sales.daily";
    mirror.source.run(&change.replace("factor", "public.factor")).await;
    apply(&[]).await;
    mirror.source.run(&change.replace("factor", "public.factor")).await;
    apply(&["--full", "truncate"]).await;
    // One lane alone.
    mirror.source.run("delete from sales.bare where n = 1").await;
    let (code, _, said) = mirror.apply(&["--dataset", "bare"]).output().await;
    assert_eq!((code, said.as_str()), (0, ""));
    mirror.require_all_equal(&["bare"]).await;
    let (code, _, said) = mirror.apply(&["--dataset", "bare", "--deletes", "gone_at"]).output().await;
    assert!(code == 1 && said.contains("without a key"), "{said}");
    mirror.service.stop().await;
}
