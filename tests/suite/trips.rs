//! The price of one export and of an idle process, in round trips to Postgres and in statements.

use std::time::Duration;

use crate::harness::{Database, Start, until};
use crate::network::{Proxy, url};
use crate::restores::cluster::Cluster;
use crate::traffic::purposes;

/// The limit on the round trips of an export, from the request to the published file.
const MOST_ROUND_TRIPS: f64 = 24.0;

/// The limit on the statements of an idle process in a second.
const MOST_STATEMENTS: u64 = 2;

/// The statements that a process sends from time to time, for a new connection, or for an export of more than a second:
/// the beginnings of their names.
const PERIODIC: [&str; 11] = [
    "connection.",
    "source.capture",
    "source.connections",
    "source.purge",
    "source.session",
    "store.deliveries",
    "store.destinations",
    "store.due",
    "store.files.unpublished",
    "store.queue.beat",
    "store.retention",
];

#[tokio::test]
async fn an_empty_delta_takes_at_most_24_round_trips() {
    let database = Database::with_users(5).await;
    let proxy = Proxy::to(&database.options).await;
    let service = Start::plain().with("DATABASE_URL", url(&database, &proxy)).service().await;
    let exports = 20;
    // In the first round each consumer gets a position, and each connection prepares its statements. Files of one type
    // and one second would have the same name.
    for export_type in ["full", "delta"] {
        proxy.traffic.take();
        for consumer in 0..exports {
            let id = service.submit(export_type, &format!("c{consumer}")).await;
            service.says("export_completed", &id).await;
        }
    }
    let mut trips = proxy.traffic.take();
    trips.retain(|trip| {
        let is_periodic = |name: &String| PERIODIC.iter().any(|periodic| name.starts_with(periodic));
        !trip.prepares && !trip.statements.iter().any(is_periodic)
    });
    let mean = trips.len() as f64 / f64::from(exports);
    assert!(mean <= MOST_ROUND_TRIPS, "{mean} round trips for an export, and for {exports}: {:#?}", purposes(&trips));
}

/// A start, or a command, closes a pool at once where nobody has its connections any more.
#[tokio::test]
async fn a_pool_that_nobody_has_keeps_no_connection_at_hand() {
    let database = Database::new().await;
    let driver = database.pool.clone();
    let pool = pg_session::pool::Pool::from(driver.clone());
    pool.give_back(pool.acquire().await.unwrap());
    drop(pool);
    tokio::time::timeout(Duration::from_millis(900), driver.close()).await.expect("closed before the second ends");
}

/// The limit on the bytes that an idle process adds in a minute to the log of a server that logs all statements.
const MOST_LOGGED: u64 = 100_000;

#[tokio::test]
async fn an_idle_process_writes_nothing_and_sends_and_logs_little() {
    // Without `minimal`, the server itself writes now and then.
    let settings = ["autovacuum = off", "wal_level = minimal", "max_wal_senders = 0", "log_statement = 'all'"];
    let cluster = Cluster::with(&settings).await;
    let database = cluster.database();
    let proxy = Proxy::to(&database.options).await;
    let log = cluster.home.path().join("data/postgres.log");
    let seconds = 15;
    // The tasks of each minute write nothing either. They log more when they run more often.
    let often = "maintenance.folder=time:3000,reload.tables=time:3000";
    for (failpoints, most, most_sent) in
        [("reload.tables=time:60000", MOST_LOGGED, MOST_STATEMENTS * seconds), (often, u64::MAX, u64::MAX)]
    {
        let start = Start::plain().with("DATABASE_URL", url(&database, &proxy)).with("FAILPOINTS", failpoints);
        let service = start.service().await;
        service.export("full", "one").await;
        // A retention counts the jobs of many short lanes at once.
        let lanes = "insert into cdc_export.lanes (consumer_id, dataset, last_sequence, last_number)
                     select 'c' || n, 'users', 1, 1 from generate_series(1, 300) n on conflict do nothing";
        database.run(lanes).await;
        // After a claim, a process records its destination once more.
        let recorded = "select max(seen_at) > (select max(finished_at) from exports) from cdc_export.destinations";
        until("the record", async || database.one::<bool>(recorded).await).await;
        database.run("vacuum").await;
        database.run("checkpoint").await;
        let written = "select concat(pg_snapshot_xmax(pg_current_snapshot()), ' ', pg_current_wal_insert_lsn())";
        let (before, size) = (database.one::<String>(written).await, std::fs::metadata(&log).unwrap().len());
        proxy.traffic.take();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let sent = proxy.traffic.take();
        let retentions = sent.iter().flat_map(|trip| &trip.statements).filter(|name| *name == "store.retention.lanes");
        let retentions = retentions.count();
        assert!(retentions <= 3 * (seconds as usize / 3 + 1), "{retentions} pages of lanes");
        let statements: usize = sent.iter().map(|trip| trip.statements.len()).sum();
        assert!(statements as u64 <= most_sent, "{statements} statements in {seconds} seconds: {:#?}", purposes(&sent));
        assert_eq!(database.one::<String>(written).await, before, "{failpoints}");
        let logged = (std::fs::metadata(&log).unwrap().len() - size) * 60 / seconds;
        assert!(logged <= most, "{logged} bytes a minute");
    }
}

#[tokio::test]
async fn a_job_follows_the_one_of_its_lane_without_a_look_for_work() {
    let database = Database::new().await;
    let proxy = Proxy::to(&database.options).await;
    // The process doesn't hear of the first job.
    proxy.silence("LISTEN");
    let start = Start::plain().with("DATABASE_URL", url(&database, &proxy)).with("WORKERS", 2);
    let service = start.with("FAILPOINTS", "worker.staged=hold,maintenance.look=time:86400000").service().await;
    let first = service.submit("full", "one").await;
    service.becomes(&first, "processing").await;
    proxy.traffic.take();
    let second = service.submit("delta", "one").await;
    until("the other worker looks in vain for a job", async || {
        proxy.traffic.take().iter().flat_map(|trip| &trip.statements).any(|name| name == "store.queue.claim")
    })
    .await;
    service.release("worker.staged").await;
    assert_eq!(service.ended(&second).await["status"], "completed");
}
