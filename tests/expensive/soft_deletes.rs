//! Deletions after watermarks that were set by hand, in every way.

#[path = "../suite/soft_deletes/tables.rs"]
mod tables;

use crate::catalog::export;
use crate::harness::Database;
use crate::soft_deletes::tables::{begin, delta, set_watermark};

const SOFT: [(&str, &str); 2] = [("flag", "gone = true"), ("stamp", "gone = '2026-01-06'")];

async fn insert_watermark(database: &Database, dataset: &str, consumer: &str, time: &str) {
    let statements = format!(
        "insert into watermarks (consumer_id, dataset, last_exported_at, updated_at)
         values ('{consumer}', '{dataset}', '{time}', now())"
    );
    database.run(&statements).await;
}

#[tokio::test]
async fn what_is_deleted_after_a_watermark_that_was_set_by_hand_comes_once() {
    let (database, _catalog, service) = begin().await;
    for (table, deleted) in SOFT {
        // 2 is deleted below the live rows' newest time, 5 above; 1 is below the watermark.
        database.run(&format!("update {table} set {deleted} where id in (1, 2)")).await;
        let of_time = ["DELETE 2", "DELETE 5"];
        for incremental_between in [false, true] {
            let consumer = |name: &str| format!("{name}-{incremental_between}");
            let between = async |consumer: &str| {
                if incremental_between {
                    export(&service, "incremental", table, consumer).await;
                    export(&service, "incremental", table, consumer).await;
                }
            };
            let deletions = async |consumer: &str| {
                let mut rows = delta(&service, table, consumer).await;
                rows.retain(|row| row.starts_with("DELETE"));
                rows
            };
            // Inserted, set forward, set back.
            let (inserted, forward, back) = (consumer("inserted"), consumer("forward"), consumer("back"));
            insert_watermark(&database, table, &inserted, "2026-01-02T12:00:00Z").await;
            for consumer in [&forward, &back] {
                export(&service, "full", table, consumer).await;
            }
            set_watermark(&database, table, &back, "2026-01-02T12:00:00Z").await;
            set_watermark(&database, table, &forward, "2026-01-05T12:00:00Z").await;
            for (consumer, due) in [(&inserted, &of_time[..]), (&back, &of_time), (&forward, &of_time[1..])] {
                between(consumer).await;
                assert_eq!(deletions(consumer).await, due, "{table} {consumer}");
                assert_eq!(delta(&service, table, consumer).await, Vec::<String>::new(), "{table} {consumer}");
            }
        }
        // A deletion that a full export has made up for is not due any more.
        insert_watermark(&database, table, "healed", "2026-01-02T12:00:00Z").await;
        export(&service, "incremental", table, "healed").await;
        export(&service, "full", table, "healed").await;
        assert_eq!(delta(&service, table, "healed").await, Vec::<String>::new());
    }
}
