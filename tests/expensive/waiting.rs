//! A page of consumers that many changes wait for.

#[path = "../suite/waiting/page.rs"]
mod page;

use crate::harness::{Start, serving_users};
use crate::plans::{cost_of, log_plans, plans};
use crate::waiting::page::{consumers, copy_position};

#[tokio::test]
async fn a_page_of_consumers_costs_the_same_whatever_waits() {
    let (database, service) = serving_users(15_000).await;
    for n in 0..4 {
        service.export("full", &format!("far-{n}")).await;
        for _ in 0..2 {
            database.run("update users set name = name || '!', updated_at = updated_at + interval '1 hour'").await;
        }
    }
    assert_eq!(database.one::<i64>("select count(*) from cdc_export.change_log").await, 120_000);
    // One whose export begins while somebody writes.
    let writing = database.open("update users set name = 'under way' where id between 100 and 104").await;
    service.export("full", "near").await;
    database.run("update users set name = 'x' where id in (7, 8, 9); update users set name = 'y' where id = 8; delete from users where id = 11").await;
    writing.rollback().await.unwrap();
    service.stop().await;
    copy_position(&database, "far-0", 95).await;
    copy_position(&database, "near", 95).await;
    database.run("vacuum analyze cdc_export.change_log").await;
    log_plans(&database).await;

    let service = Start::on(&database).arguments(&["serve", "--no-workers"]).service().await;
    let page = consumers(&service).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 195);
    // By the plan of a statement that was run before, too.
    for _ in 0..5 {
        consumers(&service).await;
    }
    for plan in plans(&database, "-- source.lag.list") {
        let (read, filtered) = cost_of(&plan, "change_log");
        assert!(read + filtered < 1_000, "{read} {filtered} {plan}");
        let (read, filtered) = cost_of(&plan, "users");
        assert!(read + filtered < 1_000, "{read} {filtered} {plan}");
    }
    // Whom a page is of is found side by side.
    for plan in plans(&database, "-- store.watermarks.positions") {
        for table in ["watermarks", "lanes"] {
            let (read, filtered) = cost_of(&plan, table);
            assert!(read <= 402 && filtered == 0, "{read} {filtered} {plan}");
        }
    }
}
