//! Tests a copy that `apply` keeps in another Postgres while the service, `apply` and both servers are killed. At each
//! moment, the copy must equal a state that the source had.
//!
//! Each writer has its own rows and a row that counts its transactions. Each transaction also saves a hash of the
//! writer's rows in the source. Amounts move between the writers' rows and shared rows, so their sum is always 0. A
//! check reads the copy in one snapshot. For each writer, it must find the rows of the last transaction that the copy
//! names, and the sum.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Reach, succeed};
use crate::patience::eventually;
use crate::random::Random;
use crate::replica;

const WRITERS: u64 = 4;
const SHARED: u64 = 40;
/// Number of kills per minute that a valid run needs.
const KILLS_A_MINUTE: usize = 30;

const TABLES: &str = "
    create table t (id bigint primary key, writer int not null, version bigint, amount bigint not null, note text);
    create table history (writer int, version bigint, hash text, primary key (writer, version));
    insert into t select -g, -1, null, 0, null from generate_series(1, 40) g;
    insert into t select g * 1000000, g, 0, 0, null from generate_series(0, 3) g;
    insert into history
    select writer, version, md5(string_agg(concat_ws('|', id, version, amount, note), ',' order by id))
    from t where writer >= 0 group by writer, version";

/// Reads from the copy, for each writer, the last transaction and the hash of the writer's rows.
const LOOK: &str = "
    select writer, max(version) as version, md5(string_agg(concat_ws('|', id, version, amount, note), ',' order by id)) as hash
    from t where writer >= 0 group by writer order by writer";

type Hashes = BTreeMap<(i32, i64), String>;

struct World {
    seed: u64,
    source: Cluster,
    target: Cluster,
    binary: PathBuf,
    folder: PathBuf,
    ports: [u16; 2],
    over: AtomicBool,
}

/// Each writer, with its last transaction and the hash of its rows.
type State = Vec<(i32, i64, String)>;

#[derive(Default)]
struct Seen {
    states: BTreeMap<i64, BTreeSet<State>>,
    looks: usize,
    /// Number of checks that found an earlier export than the check before.
    turns_back: usize,
    red: Vec<String>,
}

/// Keeps a copy for this time. Returns false if the copy was wrong, or if too little was tried.
pub(crate) async fn run(binary: PathBuf, folder: &Path, seed: u64, length: Duration) -> Result<bool> {
    let [here, there] = ["source", "target"].map(|name| folder.join(name));
    for own in [&here, &there] {
        std::fs::create_dir(own)?;
        crate::open_to_others(own)?;
    }
    let (source, target) = (Cluster::start(&here, None).await?, Cluster::start(&there, None).await?);
    let free = || std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|it| it.local_addr()).map(|it| it.port());
    let world = World {
        seed,
        source,
        target,
        binary,
        folder: folder.to_owned(),
        ports: [free()?, free()?],
        over: AtomicBool::new(false),
    };
    let world = Arc::new(world);
    world.prepare().await?;
    let writers: JoinSet<Result<usize>> = (0..WRITERS).map(|writer| write(Arc::clone(&world), writer)).collect();
    let looking = tokio::spawn(look(Arc::clone(&world)));
    let kills = kill(Arc::clone(&world), length).await?;
    world.over.store(true, Ordering::SeqCst);
    let committed: usize = writers.join_all().await.into_iter().sum::<Result<_>>()?;
    let mut seen = looking.await??;
    world.catch_up().await?;
    world.judge(&mut seen).await?;
    let total: usize = kills.values().sum();
    println!(
        "apply: {total} kills {kills:?}, {committed} commits of writers, {} looks at the copy, {} states, {} of them wrong",
        seen.looks,
        seen.states.len(),
        seen.red.len()
    );
    for red in seen.red.iter().take(5) {
        println!("RED apply: {red}");
    }
    let secs = length.as_secs() as usize;
    let is_valid = total >= secs * KILLS_A_MINUTE / 60 && seen.states.len() >= secs / 4 && kills.len() == 4;
    if !is_valid {
        println!("not valid: {} kills, {} states and victims of each kind are too few", total, seen.states.len());
    }
    Ok(is_valid && seen.red.is_empty())
}

impl World {
    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let log = self.folder.join(format!("{}.log", arguments[0]));
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let mut command = replica::command(&self.binary, &self.source.service_url(self.source.port()));
        command.env("DATASETS", self.folder.join("datasets.toml")).env("OUTPUT_DIR", self.folder.join("output"));
        command.env("LEASE_SECONDS", "1").env("MANIFESTS", "on");
        command.args(arguments).current_dir(&self.folder).stderr(log);
        Ok(command)
    }

    fn serve(&self, which: usize) -> Result<Child> {
        Ok(self.command(&["serve"])?.env("PORT", self.ports[which].to_string()).spawn()?)
    }

    fn apply(&self, which: usize, more: &[&str]) -> Result<Command> {
        let (to, server) =
            (self.target.service_url(self.target.port()), format!("http://127.0.0.1:{}", self.ports[which]));
        let fixed = ["apply", "--to", &to, "--server", &server, "--consumer", "copy", "--dataset", "t"];
        self.command(&[&fixed, more].concat())
    }

    async fn prepare(&self) -> Result<()> {
        std::fs::write(self.folder.join("datasets.toml"), "[[dataset]]\nname = \"t\"\ntable = \"t\"\n")?;
        let mut source = self.source.connect().await?;
        source.execute(AssertSqlSafe(format!("set role {}; {TABLES}", crate::cluster::SERVICE))).await?;
        succeed(&mut self.command(&["track", "t"])?).await
    }

    async fn catch_up(&self) -> Result<()> {
        let _service = self.serve(0)?;
        // The next run of `apply` loads the changes of a delta that is still open.
        let is_there = async || Ok(self.apply(0, &[])?.status().await?.success() && self.is_equal().await?);
        ensure!(eventually(Duration::from_secs(90), is_there).await?, "apply doesn't get there");
        Ok(())
    }

    async fn is_equal(&self) -> Result<bool> {
        let whole = "select coalesce(string_agg(concat_ws('|', id, writer, version, amount, note), ',' order by id), '') from t";
        let mut texts = Vec::new();
        for cluster in [&self.source, &self.target] {
            let mut conn = cluster.connect_at_last().await?;
            texts.push(sqlx::query_scalar::<_, String>(whole).fetch_one(&mut conn).await?);
        }
        Ok(texts[0] == texts[1])
    }

    /// Compares each state that was seen with the history of the source. Also checks that wrong states are detected.
    async fn judge(&self, seen: &mut Seen) -> Result<()> {
        let mut source = self.source.connect_at_last().await?;
        let rows = sqlx::query("select writer, version, hash from history").fetch_all(&mut source).await?;
        let history: Hashes = rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
        let wrong = |state: &State| {
            let is_known =
                |(writer, version, hash): &(i32, i64, String)| history.get(&(*writer, *version)) == Some(hash);
            state.len() != WRITERS as usize || !state.iter().all(is_known)
        };
        let mut before: Option<&State> = None;
        for (number, states) in &seen.states {
            if states.len() > 1 {
                seen.red.push(format!("the export {number} was there in part: {states:?}"));
            }
            for state in states {
                if wrong(state) {
                    seen.red.push(format!("the source was never so: {number} {state:?}"));
                }
                // The snapshots of a lane's exports are in order, so none of them undoes a writer's transaction.
                let is_behind = |before: &State| before.iter().zip(state).any(|(before, now)| before.1 > now.1);
                if before.is_some_and(is_behind) {
                    seen.red.push(format!("the export {number} took something back: {before:?} {state:?}"));
                }
                before = Some(state);
            }
        }
        // The copy goes back once, when the target server is put back.
        if seen.turns_back > 1 {
            seen.red.push(format!("the copy went back {} times", seen.turns_back));
        }
        // The check must detect one changed note, and one missing row.
        let mut target = self.target.connect_at_last().await?;
        for harm in [
            "update t set note = coalesce(note, '') || 'x' where id = 1000000",
            "delete from t where id = (select max(id) from t)",
        ] {
            let mut tx = target.begin().await?;
            tx.execute(harm).await?;
            ensure!(wrong(&state_of(&mut tx).await?), "this was not found out: {harm}");
            tx.rollback().await?;
        }
        Ok(())
    }
}

async fn state_of(conn: &mut PgConnection) -> Result<State, sqlx::Error> {
    let rows = sqlx::query(LOOK).fetch_all(conn).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

async fn look(world: Arc<World>) -> Result<Seen> {
    let (mut seen, mut last) = (Seen::default(), 0);
    while !world.over.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let Ok(mut conn) = world.target.connect().await else { continue };
        while !world.over.load(Ordering::SeqCst) {
            match look_once(&mut conn).await {
                Ok(Some((number, state, sum))) => {
                    seen.looks += 1;
                    seen.turns_back += usize::from(number < last);
                    last = number;
                    if sum != 0 {
                        seen.red.push(format!("amounts that moved together came apart: {sum}, {state:?}"));
                    }
                    seen.states.entry(number).or_default().insert(state);
                }
                Ok(None) => {}
                Err(_) => break,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(seen)
}

async fn look_once(conn: &mut PgConnection) -> Result<Option<(i64, State, i64)>, sqlx::Error> {
    let mut tx = conn.begin_with("begin isolation level repeatable read read only").await?;
    // The table doesn't exist before the first export.
    let is_there: bool = sqlx::query_scalar("select to_regclass('t') is not null").fetch_one(&mut *tx).await?;
    if !is_there {
        return Ok(None);
    }
    let state = state_of(&mut tx).await?;
    let number = sqlx::query_scalar("select number from cdc_apply.positions").fetch_one(&mut *tx).await?;
    let sum: i64 = sqlx::query_scalar("select coalesce(sum(amount), 1)::bigint from t").fetch_one(&mut *tx).await?;
    tx.commit().await?;
    Ok(Some((number, state, sum)))
}

async fn write(world: Arc<World>, writer: u64) -> Result<usize> {
    let mut random = Random::new(world.seed, 700 + writer);
    let mut committed = 0;
    while !world.over.load(Ordering::SeqCst) {
        let Ok(mut conn) = world.source.connect().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !world.over.load(Ordering::SeqCst) {
            match write_once(&mut conn, &mut random, writer).await {
                Ok(()) => committed += 1,
                // The error is a deadlock with another writer, or a crash.
                Err(_) => break,
            }
            tokio::time::sleep(random.millis(1, 40)).await;
        }
    }
    Ok(committed)
}

async fn write_once(conn: &mut PgConnection, random: &mut Random, writer: u64) -> Result<(), sqlx::Error> {
    let first = writer * 1_000_000;
    let mut tx = conn.begin().await?;
    for _ in 0..random.between(1, 6) {
        let (id, amount) = (first + random.between(1, 300), random.below(1000));
        let own = match random.below(4) {
            0 => format!("delete from t where id = {id} returning -amount"),
            1 => format!(
                "update t set amount = amount + {amount}, note = null where id = {id} returning {amount}::bigint"
            ),
            // Also inserts a row that was deleted before.
            _ => format!(
                "insert into t values ({id}, {writer}, null, {amount}, 'a,\"' || {amount}) on conflict (id) do update
                 set note = t.note || ';', amount = t.amount + {amount} returning {amount}::bigint"
            ),
        };
        let moved: Option<i64> = sqlx::query_scalar(AssertSqlSafe(own)).fetch_optional(&mut *tx).await?;
        let shared = random.between(1, SHARED);
        sqlx::query("update t set amount = amount - $1 where id = $2")
            .bind(moved.unwrap_or(0))
            .bind(-(shared as i64))
            .execute(&mut *tx)
            .await?;
    }
    // Some transactions commit late.
    if random.percent(15) {
        tokio::time::sleep(random.millis(50, 600)).await;
    }
    tx.execute(AssertSqlSafe(format!("update t set version = version + 1 where id = {first}"))).await?;
    let known = format!(
        "insert into history
         select writer, max(version), md5(string_agg(concat_ws('|', id, version, amount, note), ',' order by id))
         from t where writer = {writer} group by writer"
    );
    tx.execute(AssertSqlSafe(known)).await?;
    if random.percent(10) { tx.rollback().await } else { tx.commit().await }
}

/// Kills random processes, and returns the kills by kind. At 2/3 of the time, puts the target back to its state at 1/3.
async fn kill(world: Arc<World>, length: Duration) -> Result<BTreeMap<&'static str, usize>> {
    let mut random = Random::new(world.seed, 800);
    let mut kills = BTreeMap::new();
    let mut services = [world.serve(0)?, world.serve(1)?];
    let follow = |which| world.apply(which, &["--every", "100ms"])?.spawn().context("apply");
    let mut followers = [follow(0)?, follow(1)?];
    let begun = Instant::now();
    let (mut is_copied, mut is_put_back) = (false, false);
    while begun.elapsed() < length {
        tokio::time::sleep(random.millis(100, 900)).await;
        let which = random.below(2) as usize;
        if (!is_copied && begun.elapsed() > length / 3) || (!is_put_back && begun.elapsed() > length * 2 / 3) {
            let _hands = world.target.hands().await;
            world.target.stop().await?;
            if is_copied {
                world.target.put_back().await?;
                is_put_back = true;
            } else {
                world.target.copy().await?;
                is_copied = true;
            }
            world.target.launch(Reach::All).await?;
        }
        let victim = match random.below(10) {
            0..3 => "service",
            3..7 => "apply",
            7 => "source Postgres",
            _ => "target Postgres",
        };
        match victim {
            "service" => {
                // A service whose start met a crash of Postgres has ended by itself, which is no kill.
                let was_alive = services[which].try_wait()?.is_none();
                services[which].kill().await?;
                tokio::time::sleep(random.millis(0, 500)).await;
                services[which] = world.serve(which)?;
                if !was_alive {
                    continue;
                }
            }
            "apply" => {
                ensure!(followers[which].try_wait()?.is_none(), "apply ended by itself");
                followers[which].kill().await?;
                followers[which] = follow(which)?;
            }
            "source Postgres" => world.source.crash().await?,
            _ => world.target.crash().await?,
        }
        *kills.entry(victim).or_default() += 1;
    }
    Ok(kills)
}
