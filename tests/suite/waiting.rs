//! What waits for consumers: exact up to a point, and bounded whatever waits.

use serde_json::{Value, json};
use sqlx::Executor;

use crate::harness::{Database, Service, Start, cost_of};

async fn consumers(service: &Service) -> Value {
    let answer = service.call("GET", "/consumers?limit=200", &[]).await;
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

/// Rows that wait for a consumer, and whether there may be more.
fn waiting(page: &Value, consumer: &str) -> Value {
    let of = |item: &&Value| item["consumerId"] == consumer;
    let item = page["items"].as_array().unwrap().iter().find(of).unwrap_or_else(|| panic!("{consumer}: {page}"));
    json!([item["rowsWaiting"], item["rowsWaitingCapped"]])
}

/// Consumers that stand where this one does.
async fn as_it(database: &Database, consumer: &str, more: u32) {
    let columns: String = database
        .one(
            "select string_agg(attname, ', ') from pg_attribute where attrelid = 'watermarks'::regclass and attnum > 0
              and attname not in ('id', 'consumer_id')",
        )
        .await;
    database
        .run(&format!(
            "insert into watermarks (consumer_id, {columns})
             select '{consumer}-' || n, {columns} from watermarks, generate_series(1, {more}) n where consumer_id = '{consumer}'"
        ))
        .await;
}

#[tokio::test]
async fn a_page_of_consumers_costs_the_same_whatever_waits() {
    let database = Database::new().await;
    database.add_users(1, 15_000).await;
    let service = Start::on(&database).service().await;
    for n in 0..4 {
        service.export("full", &format!("far-{n}")).await;
        for _ in 0..2 {
            database.run("update users set name = name || '!', updated_at = updated_at + interval '1 hour'").await;
        }
    }
    let logged: i64 = database.one("select count(*) from cdc_export.change_log").await;
    assert_eq!(logged, 120_000);
    // One whose export begins while somebody writes.
    let mut writing = database.pool.begin().await.unwrap();
    writing.execute("update users set name = 'under way' where id between 100 and 104").await.unwrap();
    service.export("full", "near").await;
    database.run("update users set name = 'x' where id in (7, 8, 9); update users set name = 'y' where id = 8; delete from users where id = 11").await;
    writing.rollback().await.unwrap();
    service.stop().await;
    as_it(&database, "far-0", 95).await;
    as_it(&database, "near", 95).await;
    database.run("vacuum analyze cdc_export.change_log").await;
    database.tell_plans().await;

    let service = Start::on(&database).arguments(&["serve", "--no-workers"]).service().await;
    let page = consumers(&service).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 195);
    for far in ["far-0", "far-0-1", "far-0-95", "far-3"] {
        assert_eq!(waiting(&page, far), json!([10_000, true]), "{far}");
    }
    assert_eq!(waiting(&page, "near"), json!([4, false]));
    // By the plan of a statement that was run before, too.
    for _ in 0..5 {
        consumers(&service).await;
    }
    for plan in service.plans("-- source.lag.list") {
        let (read, filtered) = cost_of(&plan, "change_log");
        assert!((15_000..40_000).contains(&read) && filtered < 100, "{read} {filtered} {plan}");
        let (read, filtered) = cost_of(&plan, "users");
        assert!(read + filtered < 40_000, "{read} {filtered} {plan}");
    }
    // Whom a page is of is found side by side.
    for plan in service.plans("-- store.watermarks.places") {
        for table in ["watermarks", "lanes"] {
            let (read, filtered) = cost_of(&plan, table);
            assert!(read <= 402 && filtered == 0, "{read} {filtered} {plan}");
        }
    }
    service.stop().await;
}

#[tokio::test]
async fn what_waits_is_exact_up_to_ten_thousand() {
    let database = Database::new().await;
    database.add_users(1, 11_000).await;
    let service = Start::on(&database).service().await;
    for consumer in ["exact", "behind", "back", "forward", "nowhere"] {
        service.export("full", consumer).await;
    }
    // Under way while these begin, and done when they have ended.
    let mut writing = database.pool.begin().await.unwrap();
    writing.execute("update users set name = 'under way' where id between 1 and 50").await.unwrap();
    for consumer in ["writing", "writing-and-more"] {
        service.export("full", consumer).await;
    }
    writing.commit().await.unwrap();
    let page = consumers(&service).await;
    for (consumer, rows) in [("exact", 50), ("writing", 50), ("writing-and-more", 50)] {
        assert_eq!(waiting(&page, consumer), json!([rows, false]), "{consumer}");
    }
    // A row that changes again is one row, whoever has not seen which of its changes.
    database.run("update users set name = 'again' where id between 41 and 60; delete from users where id = 61").await;
    let page = consumers(&service).await;
    for (consumer, rows) in [("exact", 61), ("writing", 61)] {
        assert_eq!(waiting(&page, consumer), json!([rows, false]), "{consumer}");
    }
    service.export("delta", "writing").await;
    // By hand: forward, its times alone say what waits; back, they and the log; away, every row.
    database
        .run(
            "update watermarks set last_exported_at = timestamptz '2026-01-01 00:00:00+00' + interval '10996 minutes' where consumer_id = 'back';
             update users set updated_at = '2026-06-01' where id between 1 and 3;
             update users set updated_at = 'infinity' where id = 4;
             update watermarks set last_exported_at = '2026-05-01' where consumer_id = 'forward';
             insert into watermarks (consumer_id, last_exported_at) values ('planted', '2026-05-01');
             delete from watermarks where consumer_id = 'nowhere'",
        )
        .await;
    let page = consumers(&service).await;
    for (consumer, rows) in [
        ("writing", json!([4, false])),
        ("exact", json!([61, false])),
        // Of 10,997 to 11,000, and those of the log.
        ("back", json!([65, false])),
        ("forward", json!([4, false])),
        ("planted", json!([4, false])),
        ("nowhere", json!([10_000, true])),
    ] {
        assert_eq!(waiting(&page, consumer), rows, "{consumer}: {page}");
    }
    // Up to the last that is counted.
    service.export("full", "exact").await;
    database.run("update users set name = 'all' where id between 1001 and 11000").await;
    assert_eq!(waiting(&consumers(&service).await, "exact"), json!([10_000, false]));
    database.run("update users set name = 'all' where id = 1").await;
    assert_eq!(waiting(&consumers(&service).await, "exact"), json!([10_000, true]));
    service.stop().await;
}

/// By timestamp there is no log, and perhaps no index of the times.
#[tokio::test]
async fn without_an_index_of_the_times_what_waits_is_counted_out_of_some_rows() {
    let database = Database::new().await;
    database
        .run(
            "create table few (id int primary key, at timestamp);
             insert into few select n, timestamp '2026-01-01' + n * interval '1 minute' from generate_series(1, 500) n;
             create table many (id int primary key, at timestamptz);
             insert into many select n, timestamptz '2026-01-01 00:00:00+00' + n * interval '1 minute' from generate_series(1, 50000) n;
             create table ordered (id int primary key, at timestamptz);
             insert into ordered select * from many;
             create index on ordered (at)",
        )
        .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("datasets.toml");
    let blocks = ["few", "many", "ordered"].map(|name| {
        format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\nupdated_at = \"at\"\ncapture = \"timestamp\"\n")
    });
    std::fs::write(&file, blocks.concat()).unwrap();
    database
        .run(
            "insert into watermarks (consumer_id, dataset, last_exported_at)
             select name, name, timestamptz '2026-01-01 00:00:00+00' + rows * interval '1 minute'
             from (values ('few', 490), ('many', 49990), ('ordered', 49990)) ends (name, rows)",
        )
        .await;
    let service = Start::on(&database).with("DATASETS", file.display()).service().await;
    let page = consumers(&service).await;
    assert_eq!(waiting(&page, "few"), json!([10, false]));
    assert_eq!(waiting(&page, "ordered"), json!([10, false]));
    assert_eq!(waiting(&page, "many"), json!([0, true]), "nobody knows without reading all of it");
    service.stop().await;
}
