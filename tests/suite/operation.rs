//! The operation of a live row in a delta: `INSERT` or `UPDATE`, by the change log or by the row's times.

use serde_json::{Value, json};

use crate::catalog::{Catalog, export};
use crate::harness::{Csv, Database, Service, ends};

const ITEMS: &str =
    "create table items (id int primary key, n int, created_at timestamptz not null, updated_at timestamptz not null);
    insert into items select n, 0, '2026-01-01', '2026-01-02' from generate_series(1, 4) n;
    insert into items values (5, 0, '2026-01-03', '2026-01-03')";

/// Two datasets of `items`, by the log and by times.
fn catalog() -> Catalog {
    let of = |name: &str, operation: &str| {
        format!(
            "[[dataset]]\nname = \"{name}\"\ntable = \"items\"\nupdated_at = \"updated_at\"\ncreated_at = \"created_at\"\n{operation}\n"
        )
    };
    Catalog::of(&(of("logged", "") + &of("timed", "operation = \"timestamps\"")))
}

/// Returns the job of a delta, and key and operation of each row, sorted.
async fn delta(service: &Service, dataset: &str, consumer: &str) -> (Value, Vec<String>) {
    let job = export(service, "delta", dataset, consumer).await;
    let mut rows: Vec<_> =
        Csv::read(&service.path(&job)).rows.iter().map(|row| format!("{} {}", row[1], row[0])).collect();
    rows.sort();
    (job, rows)
}

#[tokio::test]
async fn the_log_tells_inserts_from_updates_unless_a_dataset_asks_for_its_times() {
    let database = Database::empty_with(ITEMS).await;
    let catalog = catalog();
    let service = catalog.serving(&database, &["logged"]).await;
    let all = |word: [&str; 5]| (1..=5).zip(word).map(|(id, word)| format!("{id} {word}")).collect::<Vec<_>>();
    assert_eq!(delta(&service, "logged", "new").await.1, all(["INSERT"; 5]), "from the beginning everything is new");
    assert_eq!(delta(&service, "timed", "new").await.1, all(["UPDATE", "UPDATE", "UPDATE", "UPDATE", "INSERT"]));
    for dataset in ["logged", "timed"] {
        export(&service, "full", dataset, "a").await;
    }
    let changes = "insert into items values (6, 0, '2026-02-01', '2026-02-01'), (7, 0, '2026-02-01', '2026-02-02');
                   update items set n = 1 where id in (1, 5);
                   delete from items where id in (2, 3);
                   insert into items values (3, 9, '2026-02-01', '2026-02-01');
                   update items set n = 1 where id = 6";
    database.run(changes).await;
    let logged = ["1 UPDATE", "2 DELETE", "3 UPDATE", "5 UPDATE", "6 INSERT", "7 INSERT"];
    assert_eq!(delta(&service, "logged", "a").await.1, logged);
    let timed = ["1 UPDATE", "2 DELETE", "3 INSERT", "5 INSERT", "6 INSERT", "7 UPDATE"];
    assert_eq!(delta(&service, "timed", "a").await.1, timed);

    // The log has no changes of these rows since then: their times alone bring them.
    for dataset in ["logged", "timed"] {
        let set_back = "update watermarks set last_exported_at = '2026-01-02 12:00+00' where consumer_id = 'a'";
        database.run(&format!("{set_back} and dataset = '{dataset}'")).await;
    }
    assert_eq!(delta(&service, "logged", "a").await.1, ["3 UPDATE", "5 UPDATE", "6 UPDATE", "7 UPDATE"]);
    assert_eq!(delta(&service, "timed", "a").await.1, ["3 INSERT", "5 INSERT", "6 INSERT", "7 UPDATE"]);
}

#[tokio::test]
async fn another_operation_needs_no_full_export() {
    let database = Database::empty_with(ITEMS).await;
    let catalog = catalog();
    let service = catalog.serving(&database, &["logged"]).await;
    for dataset in ["logged", "timed"] {
        export(&service, "full", dataset, "a").await;
    }
    service.stop().await;
    let text = std::fs::read_to_string(catalog.path()).unwrap();
    let text = text.replace("operation = \"timestamps\"", "operation = \"log\"");
    catalog.write(&text.replacen("\"created_at\"\n", "\"created_at\"\noperation = \"timestamps\"\n", 1));
    database.run("insert into items values (6, 0, '2026-02-01', '2026-02-02')").await;
    let service = catalog.start(&database).service().await;
    for (dataset, word) in [("logged", "6 UPDATE"), ("timed", "6 INSERT")] {
        let (job, rows) = delta(&service, dataset, "a").await;
        assert_eq!((&job["continuity"], rows), (&json!(null), vec![word.to_owned()]), "{dataset}");
    }
}

#[tokio::test]
async fn a_table_whose_changes_are_told_by_time_has_its_operations_from_the_watermark() {
    let database = Database::empty_with(ITEMS).await;
    let catalog = Catalog::of(
        "[[dataset]]\nname = \"items\"\ntable = \"items\"\nupdated_at = \"updated_at\"\ncreated_at = \"created_at\"
         capture = \"timestamp\"\noverlap = \"0s\"",
    );
    let service = catalog.start(&database).service().await;
    assert!(delta(&service, "items", "a").await.1.iter().all(|row| row.ends_with("INSERT")));
    database.run("insert into items values (6, 0, '2026-02-01', '2026-02-01')").await;
    assert_eq!(delta(&service, "items", "a").await.1, ["6 UPDATE"], "whether it is new nobody knows");
}

#[tokio::test]
async fn the_operation_is_said_by_the_commands() {
    let database = Database::empty_with(ITEMS).await;
    let catalog = catalog();
    let (code, said, errors) = catalog.command(&database, &["datasets", "list"]).await;
    let operations: Vec<_> = said.lines().map(|line| line.split_whitespace().nth(4).unwrap_or_default()).collect();
    assert_eq!((code, operations), (0, vec!["OPERATION", "log", "timestamps"]), "{said} {errors}");
    let (code, said, errors) = catalog.command(&database, &["datasets", "add", "items"]).await;
    assert!(code == 0 && said.contains("\n# operation = \"timestamps\"\n"), "{said} {errors}");
    catalog.write("[[dataset]]\nname = \"items\"\ntable = \"items\"\noperation = \"timestamps\"\n");
    ends(catalog.command(&database, &["datasets", "check"]).await, 2, "line 4: items: operation: ");
}
