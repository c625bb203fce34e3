//! Schedules of many replicas.

#[path = "../suite/schedules/users.rs"]
pub(crate) mod users;

use crate::catalog::Catalog;
use crate::harness::eventually;
use crate::schedules::users::{USERS, ended, jobs, schedule, users};

#[tokio::test]
async fn of_any_number_of_replicas_one_runs_each_slot() {
    const SCHEDULES: i64 = 10;
    let database = users().await;
    let blocks: Vec<_> =
        (0..SCHEDULES).map(|n| schedule(&format!("s{n}"), &format!("c{n}"), "type = \"delta\"")).collect();
    let catalog = Catalog::of(&(USERS.to_owned() + &blocks.concat()));
    let first = catalog.start(&database).with("WORKERS", 1).service().await;
    let replica = || catalog.start(&database).with("WORKERS", 1).sharing_output(&first);
    let others = [replica().service().await, replica().service().await];
    // Each runs at its first sight.
    for round in 1..=10 {
        let done = SCHEDULES * round;
        eventually("all are published", async || {
            let published = "select count(*) from exports where published_at is not null";
            (database.one::<i64>(published).await == done).then_some(())
        })
        .await;
        assert_eq!(jobs(&database).await, done);
        // The first one has a slot and waits for its lane, the others wait for the slot.
        let held = database.open("lock table cdc_export.lanes in exclusive mode").await;
        database.run("update cdc_export.schedules set slot = slot - interval '366 days'").await;
        eventually("all three wait", async || {
            let waiting =
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
                           and (query like '-- store.schedules%' or query like '-- store.jobs%')";
            (database.one::<i64>(waiting).await >= 3).then_some(())
        })
        .await;
        held.commit().await.unwrap();
    }
    let done = 11 * SCHEDULES;
    ended(&database, done as usize).await;
    let submitted: usize = others.iter().chain([&first]).map(|it| it.events("export_submitted").len()).sum();
    assert_eq!((jobs(&database).await, submitted as i64), (done, done));
    assert!(others.iter().chain([&first]).all(|it| it.events("schedule_skipped").is_empty()));
}
