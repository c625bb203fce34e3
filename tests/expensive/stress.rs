//! The stress: writers that do to a table whatever a table has done to it, consumers that replay their files meanwhile,
//! and a service that is killed in between. At the end every replica is the table.
//!
//! The oracle knows nothing but files and the table. The seed decides what each writer does; `STRESS_SEED` varies
//! it, and `STRESS_SECONDS` how long it does it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cdc_export::source::purge;
use nix::sys::signal::Signal;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::harness::{Csv, Database, Service, Start, eventually, option_env};

const WRITERS: u64 = 10;
/// The keys that writers fight for; the table's sequence goes on from far above.
const KEYS: u64 = 2_000;
/// Bytes of the log that consumers may hold: one that takes no deltas reaches twice as many within a run.
const LOG_BYTES: u64 = 80_000;

/// Sebastiano Vigna's splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    async fn pause(&mut self, longest: u64) {
        tokio::time::sleep(Duration::from_millis(self.below(longest))).await;
    }
}

/// What all tasks of a run share.
struct Run {
    database: Database,
    seed: u64,
    begun: Instant,
    length: Duration,
    writing: AtomicBool,
    /// The service that runs now, and how many did before it.
    service: watch::Sender<(String, usize)>,
    output: PathBuf,
    client: reqwest::Client,
}

impl Run {
    fn random(&self, of: u64) -> Random {
        Random(self.seed.wrapping_mul(1_000_003).wrapping_add(of))
    }

    fn is_writing(&self) -> bool {
        self.writing.load(Ordering::SeqCst)
    }

    /// How much of the time has passed, in percent.
    fn passed(&self) -> u64 {
        (self.begun.elapsed().as_millis() * 100 / self.length.as_millis()) as u64
    }

    async fn connection(&self) -> PgConnection {
        PgConnection::connect_with(&self.database.options).await.unwrap()
    }
}

async fn execute(conn: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    conn.execute(AssertSqlSafe(sql.to_owned())).await.map(drop)
}

/// Short transactions and long ones, one after the other. Returns how many were committed.
async fn write(run: Arc<Run>, writer: u64) -> u64 {
    let mut random = run.random(writer);
    let mut conn = run.connection().await;
    execute(&mut conn, "set deadlock_timeout = '20ms'; set lock_timeout = '3s'").await.unwrap();
    match writer {
        0 => execute(&mut conn, "set session_replication_role = replica").await.unwrap(),
        1 => execute(&mut conn, "set timezone = 'Asia/Kolkata'; set datestyle = 'German'").await.unwrap(),
        _ => {}
    }
    let (mut committed, mut writes) = (0, 0);
    while run.is_writing() {
        execute(&mut conn, "begin").await.unwrap();
        let done = transaction(&run, &mut conn, &mut random, writer, &mut writes).await;
        let whole = done.is_ok() && !random.percent(10);
        // Of two writers that lock each other out, one is refused here.
        let ended = execute(&mut conn, if whole { "commit" } else { "rollback" }).await;
        committed += u64::from(whole && ended.is_ok());
        random.pause(8).await;
    }
    committed
}

async fn transaction(
    run: &Run,
    conn: &mut PgConnection,
    random: &mut Random,
    writer: u64,
    writes: &mut u64,
) -> Result<(), sqlx::Error> {
    for _ in 0..1 + random.below(4) {
        *writes += 1;
        // No two versions of a row have one name.
        let name = format!("w{writer}-{writes}");
        let change = change(random, &name, run.passed() > 60);
        match random.below(10) {
            0 => {
                execute(conn, &format!("savepoint s; {change}")).await?;
                random.pause(20).await;
                execute(conn, "rollback to s").await?;
            }
            1 => execute(conn, &format!("savepoint s; {change}; release s")).await?,
            _ => execute(conn, &change).await?,
        }
    }
    if random.percent(25) {
        random.pause(300).await;
    }
    Ok(())
}

/// One change of the table, as SQL. Whatever it does, the name of each row that it writes is a new one.
fn change(random: &mut Random, name: &str, blinding: bool) -> String {
    let (key, other) = (1 + random.below(KEYS), 1 + random.below(KEYS));
    let few = key + random.below(12);
    let time = match random.below(if blinding { 102 } else { 100 }) {
        0..50 => "now()",
        50..60 => "clock_timestamp()",
        60..75 => "now() - interval '7 s'",
        75..80 => "timestamptz '2001-02-03 04:05:06.7+00'",
        80..90 => "now() + interval '300 ms'",
        90..95 => "timestamptz 'infinity'",
        95..100 => "timestamptz '-infinity'",
        100 => "timestamptz '2999-01-01'",
        _ => "timestamptz '250000-01-01'",
    };
    let updated = if random.percent(15) { "users.updated_at" } else { time };
    // A row that is marked as deleted says so in its name.
    let kept = format!("case when is_deleted then 'gone-' else '' end || '{name}'");
    let columns = "(id, name, email, created_at, updated_at)";
    let values = format!("'{name}', '{name}@example.com', {time}, {time}");
    match random.below(100) {
        0..10 => format!("insert into users {columns} values ({key}, {values}) on conflict (id) do nothing"),
        10..14 => format!("insert into users (name, email, created_at, updated_at) values ({values})"),
        14..20 => format!(
            "insert into users {columns} select n, '{name}', '{name}-' || n, {time}, {time}
             from generate_series({key}, {few}) n on conflict do nothing"
        ),
        20..25 => format!(
            "insert into users {columns} values ({key}, {values})
             on conflict (id) do update set name = excluded.name, updated_at = {updated}, is_deleted = false"
        ),
        25..50 => {
            format!("update users set name = '{name}', updated_at = {updated}, is_deleted = false where id = {key}")
        }
        50..58 => format!("update users set name = {kept}, updated_at = {updated} where id between {key} and {few}"),
        58..66 => {
            format!("update users set name = 'gone-{name}', updated_at = {updated}, is_deleted = true where id = {key}")
        }
        66..74 => format!("delete from users where id = {key}"),
        74..77 => format!("delete from users where id between {key} and {few}"),
        77..82 => format!(
            "update users set id = {other}, name = {kept}, updated_at = {updated}
             where id = {key} and not exists (select from users where id = {other})"
        ),
        82..85 => format!(
            "update users set id = -id, name = {kept}, updated_at = {updated}
             where abs(id) between {key} and {few} and not exists (select from users o where o.id = -users.id)"
        ),
        // A key and its old email in a new row.
        85..90 => format!(
            "do $$ declare freed text; begin
               delete from users where id = {key} returning email into freed;
               if found then
                 insert into users {columns} values ({}, '{name}', freed, {time}, {time}) on conflict (id) do nothing;
               end if;
             end $$",
            random.pick(&[key, other])
        ),
        90..94 => format!(
            "do $$ declare mine text; yours text; begin
               select email into mine from users where id = {key} for update;
               select email into yours from users where id = {other} for update;
               if mine <> yours then
                 update users set name = {kept} || '-a', email = '{name}-swap', updated_at = {updated} where id = {key};
                 update users set name = {kept} || '-b', email = mine, updated_at = {updated} where id = {other};
                 update users set name = {kept} || '-c', email = yours, updated_at = {updated} where id = {key};
               end if;
             end $$"
        ),
        94..97 => format!("delete from users where id = {key}; insert into users {columns} values ({key}, {values})"),
        // More subtransactions than a backend shows to the others.
        97..99 => format!(
            "do $$ begin
               for n in {key}..{key} + 80 loop
                 begin
                   update users set name = {kept}, updated_at = {updated} where id = n;
                   if n % 3 = 0 then raise 'undone'; end if;
                 exception when raise_exception then null; end;
               end loop;
             end $$"
        ),
        // Made and gone, and nobody has seen it.
        _ => format!(
            "insert into users {columns} values (-{key}, {values}) on conflict do nothing; delete from users where id = -{key}"
        ),
    }
}

/// What a reader loses that asks by time alone: the same table, the same writers, no service.
async fn poll_by_time(run: Arc<Run>) -> HashMap<i64, String> {
    let mut conn = run.connection().await;
    let (mut rows, mut last) = (HashMap::new(), None::<String>);
    loop {
        let final_round = !run.is_writing();
        let found: Vec<(i64, String, Option<String>)> = sqlx::query_as(
            "select id, name, (max(updated_at) filter (where isfinite(updated_at)) over ())::text
             from users where ($1 is null or updated_at > $1::timestamptz) and not is_deleted",
        )
        .bind(&last)
        .fetch_all(&mut conn)
        .await
        .unwrap();
        for (id, name, latest) in found {
            last = latest.or(last);
            rows.insert(id, name);
        }
        if final_round {
            return rows;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Purges all the time what the service purges every ten seconds, and holds a consumer to less of the log.
async fn purge(run: Arc<Run>) -> u64 {
    let caps = purge::Caps { bytes: LOG_BYTES, age: Duration::from_secs(3600) };
    let mut removed = 0;
    while run.is_writing() {
        removed += purge::purge(&run.database.pool, &caps).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    removed
}

/// Kills the service and starts it again until the writers stop, and once more. Some die at a step of an export, some
/// rest at one; the last one doesn't die.
async fn supervise(run: Arc<Run>, mut service: Service) -> Service {
    let mut random = run.random(1_000);
    loop {
        let life = Duration::from_millis(1_200 + random.below(2_000));
        let last = !run.is_writing();
        if last || tokio::time::timeout(life, service.exit()).await.is_err() {
            service.signal(Signal::SIGKILL);
            service.exit().await;
        }
        service = start(&run.database, &mut random, !last).sharing_output(&service).service().await;
        run.service.send_modify(|(address, starts)| {
            address.clone_from(&service.address);
            *starts += 1;
        });
        if last {
            return service;
        }
    }
}

fn start(database: &Database, random: &mut Random, dies: bool) -> Start {
    let steps =
        ["worker.claimed", "worker.opened", "worker.staged", "worker.extended", "worker.commit", "sink.publish"];
    let mut faults: Vec<_> = ["worker.opened", "worker.extended"]
        .map(|step| format!("{step}=sleep:{}@{}", 200 + random.below(400), 1 + random.below(3)))
        .into();
    if dies && random.percent(60) {
        // The first of a name counts.
        faults.insert(0, format!("{}=kill@{}", random.pick(&steps), 5 + random.below(30)));
    }
    Start::on(database)
        .with("LEASE_SECONDS", 2)
        .with("MAX_ATTEMPTS", 100)
        .with("WORKERS", 3)
        .with("FAILPOINTS", faults.join(","))
}

type Row = Vec<String>;

/// A consumer: the replica that its files give, and what they must not do.
struct Consumer {
    run: Arc<Run>,
    service: watch::Receiver<(String, usize)>,
    name: &'static str,
    replica: BTreeMap<i64, Row>,
    /// Every version that it was sent: key, name, and as what.
    sent: HashSet<(i64, String, &'static str)>,
    watermark: Value,
    lane_sequence: i64,
    exports: BTreeMap<String, usize>,
}

impl Consumer {
    fn new(run: &Arc<Run>, name: &'static str) -> Consumer {
        Consumer {
            run: Arc::clone(run),
            service: run.service.subscribe(),
            name,
            replica: BTreeMap::new(),
            sent: HashSet::new(),
            watermark: Value::Null,
            lane_sequence: 0,
            exports: BTreeMap::new(),
        }
    }

    /// One export, and whatever else is in its lane: the answer to a request may die with the service. False: it takes
    /// a full export to go on.
    async fn export(&mut self, export_type: &str) -> bool {
        let (client, consumer) = (self.run.client.clone(), self.name);
        let mut jobs = eventually("a job is submitted", async || {
            let url = format!("{}/exports/{export_type}", self.service.borrow().0);
            let _ = client.post(url).header("X-Consumer-ID", consumer).send().await;
            Some(self.jobs().await).filter(|jobs| !jobs.is_empty())
        })
        .await;
        let mut done = true;
        while !jobs.is_empty() {
            for (id, lane_sequence) in jobs {
                let job = eventually("a job ends", || self.terminal(&id)).await;
                self.lane_sequence = lane_sequence;
                done = self.take(&job);
            }
            jobs = self.jobs().await;
        }
        done
    }

    /// Its jobs that it has not seen yet.
    async fn jobs(&self) -> Vec<(String, i64)> {
        sqlx::query_as(
            "select id::text, lane_sequence from exports where consumer_id = $1 and lane_sequence > $2 order by lane_sequence",
        )
        .bind(self.name)
        .bind(self.lane_sequence)
        .fetch_all(&self.run.database.pool)
        .await
        .unwrap()
    }

    async fn terminal(&self, id: &str) -> Option<Value> {
        let url = format!("{}/exports/{id}", self.service.borrow().0);
        let job: Value = self.run.client.get(url).send().await.ok()?.json().await.ok()?;
        matches!(job["status"].as_str(), Some("completed" | "failed")).then_some(job)
    }

    fn take(&mut self, job: &Value) -> bool {
        let export_type = job["exportType"].as_str().unwrap();
        if job["status"] == "failed" {
            assert!(job["error"]["code"] == "full_export_needed" && export_type != "full", "{job}");
            *self.exports.entry(format!("{export_type}: {}", job["continuity"])).or_default() += 1;
            return false;
        }
        *self.exports.entry(export_type.to_owned()).or_default() += 1;
        let from = &job["watermarkFrom"];
        assert_eq!(*from, self.watermark, "{}: it begins where the one before ended: {job}", self.name);
        self.watermark = job["watermarkTo"].clone();
        let file = Csv::read(&self.run.output.join(job["outputFilename"].as_str().unwrap()));
        assert_eq!(job["rowsExported"], file.rows.len());
        self.replay(export_type, file.rows, job);
        true
    }

    fn replay(&mut self, export_type: &str, rows: Vec<Row>, job: &Value) {
        if export_type == "full" {
            self.replica.clear();
        }
        let mut keys = HashSet::new();
        let mut live = false;
        for mut row in rows {
            let operation = if export_type == "delta" { row.remove(0) } else { String::new() };
            let id: i64 = row[0].parse().unwrap();
            assert!(keys.insert(id), "{}: {id} is there twice: {job}", self.name);
            let expected = match (row[5] == "true", row[3] == row[4]) {
                (true, _) => "DELETE",
                (false, true) => "INSERT",
                (false, false) => "UPDATE",
            };
            assert!(operation.is_empty() && row[5] == "false" || operation == expected, "{operation} {row:?}");
            let deleted = operation == "DELETE";
            assert!(!deleted || !live, "{}: DELETE after a live row: {job}", self.name);
            live |= !deleted;
            // A row marked as deleted goes once more when it is removed.
            let marked = row[1].starts_with("gone-");
            let version = |what| (id, row[1].clone(), what);
            let is_new = match deleted {
                true => self.sent.insert(version("DELETE")) || marked && self.sent.insert(version("DELETE again")),
                false => self.sent.insert(version("")),
            };
            assert!(
                is_new || export_type == "full",
                "{}: an unchanged row came again: {operation} {row:?} {job}",
                self.name
            );
            match deleted {
                true => self.replica.remove(&id),
                false => self.replica.insert(id, row),
            };
        }
    }

    /// What it does while the writers write: `kinds` at random, from its `first` on.
    async fn consume(mut self, after_starts: usize, first: &str, kinds: &[&str]) -> Consumer {
        let mut random = self.run.random(2_000 + self.name.len() as u64);
        let mut service = self.service.clone();
        // On a slow machine it may be over before so many.
        let run = Arc::clone(&self.run);
        service.wait_for(|(_, starts)| *starts >= after_starts || !run.is_writing()).await.unwrap();
        self.export(first).await;
        while self.run.is_writing() {
            if !self.export(random.pick(kinds)).await {
                assert!(self.export("full").await);
            }
            random.pause(120).await;
        }
        self
    }

    async fn finish(&mut self, last: &str) {
        if !self.export(last).await {
            assert!(self.export("full").await);
        }
        // Whatever the last one found, nothing is left to find.
        let before = self.sent.len();
        assert!(self.export(last).await);
        assert_eq!(self.sent.len(), before, "{}: nothing has changed", self.name);
    }
}

/// The table's live rows, in the texts of a file.
async fn live_rows(database: &Database) -> BTreeMap<i64, Row> {
    let time = |column: &str| {
        format!(
            "case when isfinite({column}) then to_char({column} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
               else {column}::text end"
        )
    };
    let rows: Vec<(i64, Row)> = sqlx::query_as(AssertSqlSafe(format!(
        "select id, array[id::text, name, email, {}, {}, 'false'] from users where not is_deleted",
        time("created_at"),
        time("updated_at")
    )))
    .fetch_all(&database.pool)
    .await
    .unwrap();
    rows.into_iter().collect()
}

/// The keys whose rows differ.
fn difference(replica: &BTreeMap<i64, Row>, table: &BTreeMap<i64, Row>) -> Vec<(i64, Option<Row>, Option<Row>)> {
    let keys: HashSet<_> = replica.keys().chain(table.keys()).collect();
    let differs = keys.into_iter().filter(|key| replica.get(key) != table.get(key));
    differs.map(|key| (*key, replica.get(key).cloned(), table.get(key).cloned())).collect()
}

fn number(name: &str, default: u64) -> u64 {
    option_env(name).map_or(default, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_the_table_whatever_happens_to_it() {
    let seed = number("STRESS_SEED", 20_260_226);
    let length = Duration::from_secs(number("STRESS_SECONDS", 8));
    println!("STRESS_SEED={seed} STRESS_SECONDS={}", length.as_secs());
    let database = Database::new().await;
    database.add_users(1, (KEYS / 2).cast_signed()).await;
    database
        .run("select setval('users_id_seq', 1000000); update users set name = 'gone-' || name where is_deleted")
        .await;
    let service = start(&database, &mut Random(seed), false).service().await;
    let run = Arc::new(Run {
        database,
        seed,
        begun: Instant::now(),
        length,
        writing: AtomicBool::new(true),
        service: watch::Sender::new((service.address.clone(), 0)),
        output: service.output().to_owned(),
        client: service.client.clone(),
    });

    // Its transaction id is older than every position, and it isn't over before the writers are.
    let mut idle = run.connection().await;
    execute(&mut idle, "begin; select pg_current_xact_id()").await.unwrap();
    let writers: Vec<_> = (0..WRITERS).map(|n| tokio::spawn(write(Arc::clone(&run), n))).collect();
    let control = tokio::spawn(poll_by_time(Arc::clone(&run)));
    let purged = tokio::spawn(purge(Arc::clone(&run)));
    let supervisor = tokio::spawn(supervise(Arc::clone(&run), service));
    let plans: [(_, _, _, &[&str], _); 6] = [
        ("faithful", 0, "full", &["delta"], "delta"),
        ("mixed-up", 0, "full", &["full", "incremental", "incremental", "delta", "delta"], "delta"),
        ("live-only", 0, "incremental", &["incremental"], "incremental"),
        ("late-1", 1, "full", &["delta"], "delta"),
        ("late--2", 2, "delta", &["delta"], "delta"),
        ("late---3", 3, "incremental", &["incremental", "delta"], "delta"),
    ];
    let consumers: Vec<JoinHandle<Consumer>> = plans
        .iter()
        .map(|&(name, after, first, kinds, _)| tokio::spawn(Consumer::new(&run, name).consume(after, first, kinds)))
        .collect();

    tokio::time::sleep(length / 2).await;
    run.database.run("truncate users").await;
    tokio::time::sleep(length.saturating_sub(run.begun.elapsed())).await;
    run.writing.store(false, Ordering::SeqCst);
    let mut committed = 0;
    for writer in writers {
        committed += writer.await.unwrap();
    }
    execute(
        &mut idle,
        "insert into users (name, email, created_at, updated_at) values ('idle', 'idle', '2001-01-01', '2001-01-01'); commit",
    )
    .await
    .unwrap();
    let service = supervisor.await.unwrap();

    let table = live_rows(&run.database).await;
    let polled = control.await.unwrap();
    let lost = table.iter().filter(|(id, row)| polled.get(id) != Some(&row[1])).count();
    let starts = run.service.borrow().1;
    let logged: i64 = run.database.one("select last_value from cdc_export.change_log_sequence_seq").await;
    println!(
        "{committed} commits, {logged} changes logged, {} purged, {starts} kills; {} live rows, {lost} lost by time alone",
        purged.await.unwrap(),
        table.len()
    );
    let mut finished = Vec::new();
    for (consumer, (.., last)) in consumers.into_iter().zip(plans) {
        let mut consumer = consumer.await.unwrap();
        consumer.finish(last).await;
        let mut wrong = difference(&consumer.replica, &table);
        if last == "incremental" {
            wrong.retain(|(_, _, row)| row.is_some());
        }
        println!("{}: {:?}, {} versions", consumer.name, consumer.exports, consumer.sent.len());
        assert!(wrong.is_empty(), "{}: {} rows, as (key, replica, table): {wrong:?}", consumer.name, wrong.len());
        finished.push(consumer);
    }
    assert!(committed > 100 && starts >= 2, "it was a stress");
    assert!(lost > 0, "what the timestamps alone would have done");

    for mut consumer in finished {
        assert!(consumer.export("full").await);
        assert!(difference(&consumer.replica, &table).is_empty());
    }
    let caps = purge::Caps { bytes: 1 << 60, age: Duration::from_secs(3600) };
    eventually("the log is empty once everybody has seen everything", async || {
        purge::purge(&run.database.pool, &caps).await.unwrap();
        let left: i64 = run.database.one("select count(*) from cdc_export.change_log").await;
        (left == 0).then_some(())
    })
    .await;
    service.stop().await;
}
