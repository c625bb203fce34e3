//! Many lanes at once: a claim stays short, and none of them waits for ever.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cdc_export::store::Store;
use cdc_export::store::lease::Lease;
use cdc_export::store::queue::{Claimant, Settlement};

use crate::harness::{Database, option_env, planted};

const LEASE: Duration = Duration::from_secs(600);

/// So many lanes with ten open jobs each.
const LANES: u32 = 1_500;

/// Claims on connections of its own, and measures.
struct Claims {
    database: Database,
    store: Store,
    times: Vec<Duration>,
}

impl Claims {
    fn on(database: &Database) -> Claims {
        let database = Database::at(database.options.clone());
        Claims { store: Store::new(database.pool.clone()), database, times: Vec::new() }
    }

    async fn next(&mut self) -> Option<Lease> {
        let datasets = ["users".to_owned()];
        let claimant = Claimant { owner: "test", datasets: &datasets, destination: None, session: None };
        let begun = Instant::now();
        let claim = self.store.claim(&claimant, LEASE).await.unwrap();
        self.times.push(begun.elapsed());
        claim.lease
    }

    /// Ends with it: what a claim, with what came of it, has read of the queue on average, in entries of its indexes
    /// and rows.
    async fn read_each(mut self, before: i64) -> i64 {
        // A session tells what it has read when it ends.
        self.database.pool.close().await;
        let each = (read(&Database::at(self.database.options)).await - before) / self.times.len() as i64;
        self.times.sort_unstable();
        let (median, slowest) = (self.times[self.times.len() / 2], self.times.last());
        println!("claim: median {median:?}, slowest {slowest:?}, {each} entries and rows read");
        each
    }
}

/// Returns the number of entries that were read from jobs and exports so far.
async fn read(database: &Database) -> i64 {
    let read = "select (select sum(idx_tup_read) from pg_stat_user_indexes where relname in ('jobs', 'exports'))::int8
                + (select sum(seq_tup_read) from pg_stat_user_tables where relname in ('jobs', 'exports'))::int8";
    // A session tells of it within a second, and once more when it ends: the same twice in a row is all of it.
    let mut last = -1;
    loop {
        let now = database.one::<i64>(read).await;
        if now == last {
            return now;
        }
        last = now;
        tokio::time::sleep(Duration::from_millis(1_100)).await;
    }
}

/// Jobs `from..=to` of each of so many consumers, a lane's first job before every lane's second.
async fn enqueue(database: &Database, consumers: u32, from: u32, to: u32) {
    let rows = format!(
        "select 'c' || c, 'users', n, 'delta', 'pending', timestamptz '2026-01-01 00:00:00+00' + n * interval '1 hour'
         from generate_series({from}, {to}) n, generate_series(1, {consumers}) c"
    );
    database.run(&planted(&rows)).await;
}

/// `TEST_LANES=3000` for the figures of docs/RELIABILITY.md.
#[tokio::test]
async fn of_many_lanes_each_has_its_turn_and_a_claim_reads_a_few() {
    let lanes: u32 = option_env("TEST_LANES").map_or(LANES, |lanes| lanes.parse().unwrap());
    let database = Database::new().await;
    enqueue(&database, lanes, 1, 10).await;
    database.run("analyze cdc_export.jobs, cdc_export.exports").await;
    let before = read(&database).await;
    let mut claims = Claims::on(&database);
    let mut seen = HashMap::<String, u32>::new();
    let mut running = std::collections::VecDeque::new();
    for n in 0..2 * lanes {
        // An index keeps the entries of jobs that have left it until a vacuum, which autovacuum does when it comes.
        if n % 500 == 0 {
            database.run("vacuum cdc_export.jobs, cdc_export.exports").await;
        }
        let lease = claims.next().await.expect("there is work");
        *seen.entry(lease.first().consumer.as_ref().unwrap().to_string()).or_default() += 1;
        running.push_back(lease);
        if running.len() > 4 {
            let oldest = running.pop_front().unwrap();
            claims.store.settle(&oldest, &[], &fail(), "").await.unwrap().unwrap_or_else(|| panic!("{}", oldest.id()));
        }
    }
    assert_eq!(seen.len() as u32, lanes, "no lane starves");
    assert!(seen.values().all(|times| *times == 2), "each has had its turn before any has a third");
    let each = claims.read_each(before).await;
    assert!((1..i64::from(lanes)).contains(&each), "as if it looked at every lane: {each}");
}

#[tokio::test]
async fn what_waits_for_its_time_hides_nothing() {
    let database = Database::new().await;
    let mut claims = Claims::on(&database);
    let insert = async |consumer: &str, run_at: &str| {
        let rows = format!("select '{consumer}', 'users', 1, 'delta', 'pending', {run_at}");
        let turn = format!("update cdc_export.jobs set turn = now() where consumer_id = '{consumer}'");
        database.run(&(planted(&rows) + &turn)).await;
    };
    insert("later", "now() + interval '1 hour'").await;
    assert!(claims.next().await.is_none());
    insert("now", "now()").await;
    assert_eq!(claims.next().await.expect("it is ready").first().consumer.as_ref().unwrap().as_str(), "now");
    // Behind a job of its lane it was none of the jobs that the front of the queue was found among.
    insert("old", "now() - interval '1 hour'").await;
    assert!(claims.next().await.is_some());
}

fn fail() -> Settlement {
    Settlement::Fail(cdc_export::job::Failure {
        continuity: None,
        code: cdc_export::job::FailureCode::Internal,
        detail: String::new(),
        dataset: None,
    })
}
