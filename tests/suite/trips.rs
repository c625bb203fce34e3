//! The price of one export and of an idle process, in round trips to Postgres and in statements.

use std::time::Duration;

use crate::harness::{Database, Start};
use crate::network::{Proxy, url};
use crate::traffic::purposes;

/// The limit on the round trips of an export, from the request to the published file.
const MOST_ROUND_TRIPS: f64 = 57.0;

/// The limit on the statements of an idle process in a second.
const MOST_STATEMENTS: u64 = 14;

/// The statements that a process sends from time to time, or for an export of more than a second: the beginnings of
/// their names.
const PERIODIC: [&str; 10] = [
    "source.capture",
    "source.purge",
    "store.deliveries",
    "store.due",
    "store.files.unpublished",
    "store.ping",
    "store.queue.beat",
    "store.queue.record_destination",
    "store.queue.repair",
    "store.retention",
];

#[tokio::test]
async fn the_round_trips_of_an_empty_delta_are_few() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let proxy = Proxy::to(&database.options).await;
    let service = Start::plain().with("DATABASE_URL", url(&database, &proxy)).service().await;
    let export = async || {
        let id = service.submit("delta", "one").await;
        service.says("export_completed", &id).await;
    };
    // Each connection prepares its statements.
    for _ in 0..10 {
        export().await;
    }
    proxy.traffic.take();
    let exports = 20;
    for _ in 0..exports {
        export().await;
    }
    let mut trips = proxy.traffic.take();
    trips.retain(|trip| {
        let is_periodic = |name: &String| PERIODIC.iter().any(|periodic| name.starts_with(periodic));
        !trip.prepares && !trip.statements.iter().any(is_periodic)
    });
    let mean = trips.len() as f64 / f64::from(exports);
    assert!(mean <= MOST_ROUND_TRIPS, "{mean} round trips for an export, and for {exports}: {:#?}", purposes(&trips));
    service.stop().await;
}

#[tokio::test]
async fn the_statements_of_an_idle_process_are_few() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let proxy = Proxy::to(&database.options).await;
    let service = Start::plain().with("DATABASE_URL", url(&database, &proxy)).service().await;
    service.export("full", "one").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    proxy.traffic.take();
    // A machine that is busy sends less.
    let seconds = 20;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let trips = proxy.traffic.take();
    let sent: usize = trips.iter().map(|trip| trip.statements.len()).sum();
    assert!(
        sent as u64 <= MOST_STATEMENTS * seconds,
        "{sent} statements in {seconds} seconds: {:#?}",
        purposes(&trips)
    );
    service.stop().await;
}
