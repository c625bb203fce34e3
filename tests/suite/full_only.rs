//! Datasets with `capture = "none"`: full exports of views, foreign tables and tables without a key.

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export, post};
use crate::harness::{Csv, Database, Service, ends, eventually, needs_full, refusal, silent, until};
use crate::mirrors::Mirror;
use crate::patterns::QUICK;
use crate::schedules::becomes;
use crate::several_datasets::{export_all, id, of_exports, submit};

const SHOP: &str = "
    create table factor (n int not null);
    insert into factor values (2);
    create function twice(n int) returns int language plpgsql as 'begin return n * (select f.n from factor f); end';
    create schema shop;
    create table shop.orders (id int primary key, total int);
    insert into shop.orders select n, n % 3 from generate_series(1, 30) n;
    create table shop.bare (n int, operation text);
    insert into shop.bare values (1, 'a'), (1, 'a'), (null, null);
    create function least_total() returns int immutable language plpgsql as 'begin return (select 0 * f.n from factor f); end';
    create view shop.totals as
      select total, public.twice(total) as twice, count(*) from shop.orders where total >= public.least_total() group by total;
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
    let database = Database::empty_with(SHOP).await;
    let catalog = Catalog::of(&file());
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
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
    let (bare, parent, cache) = (of("bare"), of("parent"), of("cache"));
    assert_eq!((&bare["capture"], &bare["key"], &bare["ready"]), (&json!("none"), &json!([]), &json!(true)), "{bare}");
    // The key of a parent doesn't tell the rows of its children apart.
    assert_eq!((&cache["key"], &parent["key"]), (&json!(["id"]), &json!([])));
    let consumers: Value = service.call("GET", "/consumers?consumer=a", &[]).await.json().await.unwrap();
    let has_no_capture = |it: &Value| it["capture"] == "none";
    assert!(consumers["items"].as_array().unwrap().iter().all(has_no_capture), "{consumers}");
    assert!(service.events("table_unreadable").is_empty());
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
}

#[tokio::test]
async fn a_job_that_heals_has_what_has_full_exports_alone() {
    let (_database, _catalog, service) = shop().await;
    let all = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    assert_eq!((&all["status"], of_exports(&all, "dataset")), (&json!("completed"), json!(["orders"])), "{all}");
    let left_out: Vec<_> = all["leftOut"].as_array().unwrap().iter().map(|it| &it["reason"]).collect();
    assert_eq!(left_out, ["full_only"; 5], "{all}");
    let named = json!({ "datasets": ["orders", "totals"] });
    let problem: Value = post(&service, "/exports/delta", Some("a"), &named).await.json().await.unwrap();
    assert!(problem["status"] == 409 && problem["code"] == "full_only", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("totals"), "{problem}");
    let submitted = submit(&service, "delta", json!({ "datasets": "*", "heal": true })).await;
    assert_eq!(submitted["exportType"], "delta", "{submitted}");
    let healed = service.completes(id(&submitted)).await;
    assert_eq!(healed["exportType"], "delta", "{healed}");
    assert_eq!(of_exports(&healed, "dataset"), json!(["bare", "cache", "daily", "orders", "parent", "totals"]));
    assert_eq!(of_exports(&healed, "exportType"), json!(["full", "full", "full", "delta", "full", "full"]));
}

#[tokio::test]
async fn a_job_of_deltas_without_any_dataset_that_has_them_says_what_would_help() {
    let database = Database::empty_with(SHOP).await;
    let service = Catalog::of(&["totals", "bare"].map(block).concat()).start(&database).service().await;
    let answer = post(&service, "/exports/delta", Some("a"), &json!({ "datasets": "*" })).await;
    let problem: Value = answer.json().await.unwrap();
    assert!(problem["status"] == 409 && problem["code"] == "nothing_ready", "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("have full exports alone, which `heal` makes"), "{detail}");
}

#[tokio::test]
async fn a_failure_names_what_a_view_reads() {
    let database = Database::empty_with(SHOP).await;
    let schema = "create extension postgres_fdw;
                  create server away foreign data wrapper postgres_fdw options (host '127.0.0.1', port '1');
                  create user mapping for public server away options (user 'nobody', password 'none');
                  create foreign table shop.away (id int) server away;
                  create view shop.beyond as select id from shop.away;
                  create function unknown_column() returns int language plpgsql as
                    'begin raise exception ''no such column there'' using errcode = ''HV005''; end';
                  create view shop.wrong as select public.unknown_column() as n;
                  create view shop.shares as select 10 / total as share from shop.orders;
                  create view shop.above as select total from shop.totals;
                  create function shop.refuses(n int) returns int language plpgsql as
                    $$ begin raise exception 'the card of order %', n using errcode = '42501'; end $$;
                  create view shop.refused as select shop.refuses(id) as id from shop.orders";
    database.run(schema).await;
    let catalog = Catalog::of(&["beyond", "wrong", "shares", "above", "refused"].map(block).concat());
    let service = catalog.start(&database).with("MAX_ATTEMPTS", 2).service().await;
    let failed = async |dataset: &str| {
        let job = ended(&service, "/exports/full", Some("a"), json!({ "dataset": dataset })).await;
        let of = |pointer: &str| job.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        (of("/error/code"), of("/error/detail"), job["attempt"].as_u64().unwrap())
    };
    let (code, detail, attempt) = failed("shares").await;
    assert!(code == "value_unreadable" && detail.contains("read or compute a value of `shop.shares`"), "{detail}");
    assert!(detail.contains("SQLSTATE 22012") && attempt == 1, "{detail}");
    // The text of a function's error may quote a row.
    let (code, detail, _) = failed("refused").await;
    assert!(code == "permission_denied", "{detail}");
    assert!(detail.ends_with(": SQLSTATE 42501, whose message is in the log"), "{detail}");
    until("it is logged", async || service.log().contains("the card of order")).await;
    // The next attempt may reach the server. It can't mend the definition of a foreign table.
    for (dataset, sqlstate, attempts) in [("beyond", "08001", 2), ("wrong", "HV005", 1)] {
        let (code, detail, attempt) = failed(dataset).await;
        assert_eq!((&*code, attempt), ("source_unavailable", attempts), "{detail}");
        let says = format!(
            "a foreign server that `shop.{dataset}` reads has refused or can't be reached (SQLSTATE {sqlstate})"
        );
        assert!(detail.starts_with(&says), "{detail}");
    }
    let tx = database.open("lock table shop.orders").await;
    let (code, detail, _) = failed("above").await;
    assert_eq!(code, "source_unavailable");
    assert_eq!(detail, "another transaction was in the way of `shop.orders`, which `shop.above` reads");
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_schedule_asks_for_what_the_dataset_can_have() {
    let database = Database::empty_with(SHOP).await;
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
}

/// No row of a table is lost between the lock and the snapshot: what is read is locked before it, with its partitions.
#[tokio::test]
async fn an_export_waits_for_who_empties_a_table_or_a_partition_of_it() {
    let database = Database::empty_with(SHOP).await;
    let schema = "create table shop.log (id int) partition by range (id);
                  create table shop.log_1 partition of shop.log for values from (0) to (100);
                  create table shop.log_2 partition of shop.log for values from (100) to (200);
                  insert into shop.log select g from generate_series(0, 199) g;
                  create view shop.seen as select * from shop.log;
                  create view shop.seen_again as select id from shop.seen where id in (select id from shop.log)";
    database.run(schema).await;
    let catalog = Catalog::of(&["totals", "log", "seen", "seen_again"].map(block).concat());
    let service = catalog.start(&database).service().await;
    let all: Vec<_> = (0..200).map(|id| id.to_string()).collect();
    for (dataset, table, refill, count) in [
        ("totals", "shop.orders", "insert into shop.orders values (1, 1)", 1),
        ("log", "shop.log_1", "insert into shop.log select g from generate_series(0, 99) g", all.len()),
        ("seen", "shop.log_1", "insert into shop.log select g from generate_series(0, 99) g", all.len()),
        ("seen_again", "shop.log_2", "insert into shop.log select g from generate_series(100, 199) g", all.len()),
    ] {
        let tx = database.open(&format!("truncate {table}; {refill}")).await;
        let submitted: Value =
            post(&service, "/exports/full", Some("a"), &json!({ "dataset": dataset })).await.json().await.unwrap();
        database.waits_for(table).await;
        tx.commit().await.unwrap();
        let job = service.ended(submitted["jobId"].as_str().unwrap()).await;
        assert_eq!(rows(&service, &job).len(), count, "{dataset}: {job}");
    }
}

#[tokio::test]
async fn an_export_takes_what_has_replaced_a_view_while_it_waited() {
    let database = Database::empty_with(SHOP).await;
    let service = Catalog::of(&block("totals")).start(&database).service().await;
    let replace = "drop view shop.totals; create materialized view shop.totals as select id from shop.orders";
    let tx = database.open(replace).await;
    let submitted = post(&service, "/exports/full", Some("a"), &json!({ "dataset": "totals" })).await;
    let submitted: Value = submitted.json().await.unwrap();
    let looks = "select exists (select from pg_stat_activity where query like '-- source.relation_locks.locked%')";
    until("the attempt waits", async || database.one::<bool>(looks).await).await;
    tx.commit().await.unwrap();
    let job = service.ended(submitted["jobId"].as_str().unwrap()).await;
    assert_eq!((&job["rowsExported"], &job["attempt"]), (&json!(30), &json!(1)), "{job}");
}

#[tokio::test]
async fn a_job_names_what_it_could_not_lock() {
    let database = Database::empty_with(SHOP).await;
    let schema = "create table shop.log (id int) partition by range (id);
                  create table shop.log_1 partition of shop.log for values from (0) to (100)";
    database.run(schema).await;
    let catalog = Catalog::of(&["bare", "daily", "log"].map(block).concat());
    let service = catalog.start(&database).with("MAX_ATTEMPTS", 1).service().await;
    for (holds, dataset, relation) in [
        ("lock table shop.log_1", "log", "`shop.log_1`, a part of `shop.log`"),
        ("refresh materialized view shop.daily", "daily", "`shop.daily`"),
    ] {
        let tx = database.open(holds).await;
        let failed = export_all(&service, "full", json!({ "datasets": "*" })).await;
        tx.rollback().await.unwrap();
        let detail = format!("another transaction was in the way of {relation}");
        let error = json!({ "code": "source_unavailable", "detail": detail, "dataset": dataset });
        assert_eq!(failed["error"], error);
    }
    let job = export_all(&service, "full", json!({ "datasets": "*" })).await;
    assert_eq!(job["status"], "completed", "{job}");
}

#[tokio::test]
async fn a_job_heals_a_dataset_that_lost_its_capture_while_it_waited() {
    let database = Database::empty_with(SHOP).await;
    let catalog = Catalog::of(&file());
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    let service = catalog.start(&database).with("FAILPOINTS", QUICK).service().await;
    export(&service, "full", "orders", "a").await;
    let tx = database.open("lock table shop.orders").await;
    let submitted = submit(&service, "delta", json!({ "datasets": ["bare", "orders"], "heal": true })).await;
    database.waits_for("shop.orders").await;
    catalog.write(&file().replace("shop.orders\"\n", "shop.orders\"\ncapture = \"none\"\n"));
    eventually("the file is in force", async || service.events("datasets_reloaded").pop()).await;
    // An attempt ends by the file that it began with.
    eventually("the next attempt", async || service.events("export_retried").pop()).await;
    tx.commit().await.unwrap();
    assert_eq!(of_exports(&service.completes(id(&submitted)).await, "exportType"), json!(["full", "full"]));
}

#[tokio::test]
async fn a_dataset_that_loses_or_gains_its_capture_begins_with_a_full_export() {
    let (database, catalog, service) = shop().await;
    export(&service, "full", "orders", "a").await;
    service.stop().await;
    let captured = file();
    catalog.write(&captured.replace("shop.orders\"\n", "shop.orders\"\ncapture = \"none\"\n"));
    let service = catalog.start(&database).service().await;
    export(&service, "full", "orders", "a").await;
    service.stop().await;
    catalog.write(&captured);
    let service = catalog.start(&database).service().await;
    needs_full(&ended(&service, "/exports/delta", Some("a"), json!({ "dataset": "orders" })).await, "dataset_changed");
    export(&service, "full", "orders", "a").await;
    export(&service, "delta", "orders", "a").await;
}

#[tokio::test]
async fn what_the_service_cant_capture_is_refused_or_drafted() {
    let database = Database::empty_with(SHOP).await;
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
    // Nobody checks the key of a view.
    catalog.write(&(block("totals") + "key = [\"total\"]\n"));
    ends(catalog.command(&database, &["datasets", "check"]).await, 2, "may be null");
    catalog.write(&(block("totals") + "exclude = [\"total\", \"twice\", \"count\"]\n"));
    ends(catalog.command(&database, &["datasets", "check"]).await, 2, "no column is left");
    for (member, value) in [("updated_at", "\"x\""), ("operation", "\"log\""), ("overlap", "\"5m\"")] {
        catalog.write(&format!("{}{member} = {value}\n", block("totals")));
        ends(catalog.command(&database, &["datasets", "check"]).await, 2, member);
    }
    // A pattern takes tables without a key, and no view.
    catalog.write("[[tables]]\nmatch = [\"shop.*\"]\ncapture = \"none\"\n");
    let (code, printed, said) = catalog.command(&database, &["datasets", "check"]).await;
    assert!(code == 0, "{printed}");
    assert!(printed.contains("5 datasets fit their tables: bare, cache, child, orders, parent"), "{printed}");
    assert!(said.contains("shop.totals") && said.contains(": no dataset: it is a view"), "{said}");
}

#[tokio::test]
async fn a_copy_of_anything_is_replaced_in_one_transaction() {
    let mirror = Mirror::of_file(&file().replace("shop.", "sales."), &SHOP.replace("shop", "sales")).await;
    let copied = ["bare", "cache", "daily", "orders", "totals"];
    let datasets: Vec<_> = copied.iter().flat_map(|name| ["--dataset", name]).collect();
    let apply = async || {
        silent(mirror.apply(&datasets).output().await);
        mirror.require_all_equal(&copied).await;
    };
    // `operation` is a column of the table.
    apply().await;
    let change = "insert into sales.bare values (1, 'a'); delete from sales.orders where id < 5;
                  update factor set n = n + 1; refresh materialized view sales.daily";
    mirror.source.run(&change.replace("factor", "public.factor")).await;
    apply().await;
    mirror.source.run(&change.replace("factor", "public.factor")).await;
    apply().await;
    // One lane alone.
    mirror.source.run("delete from sales.bare where n = 1").await;
    silent(mirror.apply(&["--dataset", "bare"]).output().await);
    mirror.require_all_equal(&["bare"]).await;

    // A table that gets a key in the source gets it in the copy.
    mirror.source.run("delete from sales.bare; alter table sales.bare add primary key (n)").await;
    mirror.source.run("insert into sales.bare values (1, 'one'), (2, 'two')").await;
    // The first call warns, since an export was asked for alone.
    ends(mirror.apply(&datasets).output().await, 0, "");
    apply().await;
    let key =
        "select pg_get_constraintdef(oid) from pg_constraint where conrelid = 'sales.bare'::regclass and contype = 'p'";
    assert_eq!(mirror.target.one::<String>(key).await, "PRIMARY KEY (n)");
    mirror.source.run("update sales.bare set operation = 'changed' where n = 1").await;
    apply().await;
}
