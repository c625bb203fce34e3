//! The counts of exports that wait for a consumer: exact up to a limit, and cheap beyond it.

pub(crate) mod page;

use serde_json::json;

use crate::harness::{Database, Start, serving_users};
use crate::waiting::page::{consumers, waiting};

#[tokio::test]
async fn what_waits_is_exact_up_to_ten_thousand() {
    let (database, service) = serving_users(11_000).await;
    for consumer in ["exact", "behind", "back", "forward", "nowhere"] {
        service.export("full", consumer).await;
    }
    // Under way while these begin, and done when they have ended.
    let writing = database.open("update users set name = 'under way' where id between 1 and 50").await;
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
    let changes = "
        update watermarks set last_exported_at = timestamptz '2026-01-01 00:00:00+00' + interval '10996 minutes' where consumer_id = 'back';
        update users set updated_at = '2026-06-01' where id between 1 and 3;
        update users set updated_at = 'infinity' where id = 4;
        update watermarks set last_exported_at = '2026-05-01' where consumer_id = 'forward';
        insert into watermarks (consumer_id, last_exported_at) values ('planted', '2026-05-01');
        delete from watermarks where consumer_id = 'nowhere'";
    database.run(changes).await;
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
}

/// By timestamp there is no log, and perhaps no index of the times.
#[tokio::test]
async fn without_an_index_of_the_times_what_waits_is_counted_out_of_some_rows() {
    let schema = "
        create table few (id int primary key, at timestamp);
        insert into few select n, timestamp '2026-01-01' + n * interval '1 minute' from generate_series(1, 500) n;
        create table many (id int primary key, at timestamptz);
        insert into many select n, timestamptz '2026-01-01 00:00:00+00' + n * interval '1 minute' from generate_series(1, 50000) n;
        create table ordered (id int primary key, at timestamptz);
        insert into ordered select * from many;
        create index on ordered (at)";
    let database = Database::new_with(schema).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("datasets.toml");
    let blocks = ["few", "many", "ordered"].map(|name| {
        format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\nupdated_at = \"at\"\ncapture = \"timestamp\"\n")
    });
    std::fs::write(&file, blocks.concat()).unwrap();
    let changes = "insert into watermarks (consumer_id, dataset, last_exported_at)
                   select name, name, timestamptz '2026-01-01 00:00:00+00' + rows * interval '1 minute'
                   from (values ('few', 490), ('many', 49990), ('ordered', 49990)) ends (name, rows)";
    database.run(changes).await;
    let service = Start::on(&database).with("DATASETS", file.display()).service().await;
    let page = consumers(&service).await;
    assert_eq!(waiting(&page, "few"), json!([10, false]));
    assert_eq!(waiting(&page, "ordered"), json!([10, false]));
    assert_eq!(waiting(&page, "many"), json!([0, true]), "nobody knows without reading all of it");
}
