//! A trial: a service, its users and its faults, from the first process to the oracle's verdict.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use sqlx::PgConnection;

use crate::auditor::{self, Archive};
use crate::bucket::Bucket;
use crate::clients::{self, Caller};
use crate::clock::Clock;
use crate::cluster::{Cluster, SERVICE};
use crate::lanes::{DATASETS, LANES, Lane};
use crate::ledger::{Ledger, is_terminal};
use crate::loader::{self, Recorded};
use crate::oracle::{End, Oracle};
use crate::patience::{at_last, eventually};
use crate::place::{self, Place};
use crate::plan::{Act, Blow, Move, Plan};
use crate::proxy::{Link, Mishap};
use crate::receiver::{self, Receiver};
use crate::replica::Replica;
use crate::report::{Counts, Least, Report, UPHEAVAL, locked};
use crate::{bystander, ddl, nemesis, publisher, recorder, shapes, writers};

/// Longest time from the last fault until every job has ended. It covers the longest pause before a fourth attempt (18
/// s and a fifth of it), the jobs behind that one, and a busy machine.
const DRAIN: Duration = Duration::from_secs(60);
/// More than three workers, the API and the rest of a process need. A leak exceeds it.
const MOST_DESCRIPTORS: usize = 128;
const MOST_RESIDENT_KIB: u64 = 256 * 1024;

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) folder: PathBuf,
    pub(crate) place: Place,
    pub(crate) datasets: PathBuf,
    pub(crate) cluster: Cluster,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) http: reqwest::Client,
    pub(crate) receiver: Receiver,
    pub(crate) report: Arc<Report>,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) archive: Mutex<Archive>,
    pub(crate) oracle: tokio::sync::Mutex<Oracle>,
    pub(crate) loaded: Mutex<BTreeMap<(&'static str, usize), Recorded>>,
    /// Hashes of the files that the database knew before a restore.
    pub(crate) lost: Mutex<HashSet<String>>,
    /// Even: the database runs normally. Odd: it is being restored.
    pub(crate) era: AtomicU64,
    pub(crate) writing: AtomicBool,
    pub(crate) asking: AtomicBool,
    pub(crate) auditing: AtomicBool,
    /// The invariant whose first violation ends the trial. A control needs no other.
    ends_with: Option<&'static str>,
}

impl World {
    pub(crate) fn era(&self) -> u64 {
        self.era.load(Ordering::SeqCst)
    }

    /// Returns true if the database was restored, or failed over.
    pub(crate) fn was_turned_over(&self) -> bool {
        self.report.acts().iter().any(|act| act.what == UPHEAVAL)
    }

    /// Returns true if somebody asked to remove the file of a job's export in a lane after it got its name. If the
    /// database is put back to an earlier moment, the file is lost, and its lane needs a full export.
    pub(crate) fn was_removed(&self, job: &str, lane: &str) -> bool {
        locked(&self.ledger).promises.get(job).is_some_and(|promise| promise.removal_asked.contains(lane))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ends_with.is_some_and(|invariant| self.report.has(invariant))
    }
}

pub(crate) struct Trial {
    pub(crate) seed: u64,
    pub(crate) failpoints: Vec<String>,
    pub(crate) debug: PathBuf,
    pub(crate) struck: PathBuf,
    pub(crate) plan: Plan,
    pub(crate) ends_with: Option<&'static str>,
    /// The bucket for the files. `None`: a folder.
    pub(crate) store: Option<Bucket>,
    pub(crate) clock: Option<Clock>,
    pub(crate) moves: Vec<Move>,
}

impl Trial {
    /// Runs the trial in `folder`. The user that runs Postgres must reach `folder`.
    pub(crate) async fn run(mut self, folder: &Path) -> Result<(Arc<Report>, Counts)> {
        let report = Arc::new(Report::new(folder)?);
        std::fs::write(folder.join("schedule.log"), self.plan.text())?;
        let world = self.prepare(folder, &report).await?;
        let ran = self.run_in(&world).await;
        // Leaves no process behind if the trial broke off.
        for replica in &world.replicas {
            let _ = replica.kill(&report).await;
        }
        let stopped = world.cluster.stop().await;
        let counts = ran?;
        stopped.map(|()| (report, counts))
    }

    async fn prepare(&mut self, folder: &Path, report: &Arc<Report>) -> Result<Arc<World>> {
        std::fs::create_dir(folder.join("archive"))?;
        let place = Place::new(self.store.as_ref(), folder).await?;
        let datasets = folder.join("datasets.toml");
        std::fs::write(&datasets, DATASETS)?;
        let cluster = Cluster::start(folder, self.clock.take()).await?;
        let receiver = Receiver::new(self.seed)?;
        let mut replicas = Vec::new();
        for index in 0..place::replicas(self.store.as_ref()) {
            replicas.push(Replica::new(index, &cluster, &place, &receiver, folder).await?);
        }
        Ok(Arc::new(World {
            seed: self.seed,
            folder: folder.to_owned(),
            place,
            datasets,
            cluster,
            replicas,
            http: clients::http()?,
            receiver,
            report: Arc::clone(report),
            ledger: Mutex::default(),
            archive: Mutex::default(),
            oracle: tokio::sync::Mutex::default(),
            loaded: Mutex::default(),
            lost: Mutex::default(),
            era: AtomicU64::new(0),
            writing: AtomicBool::new(true),
            asking: AtomicBool::new(true),
            auditing: AtomicBool::new(true),
            ends_with: self.ends_with,
        }))
    }

    async fn run_in(self, world: &Arc<World>) -> Result<Counts> {
        let report = &world.report;
        // Starts all replicas at once: one of them migrates.
        let first = if self.failpoints.is_empty() { &self.struck } else { &self.debug };
        let receiving = tokio::spawn(receiver::listen(Arc::clone(world)));
        let mut conn = world.cluster.connect().await?;
        shapes::make(&mut conn).await?;
        publisher::make(world).await?;
        let starts = world.replicas.iter().map(|replica| replica.start(first, None, report));
        futures_util::future::try_join_all(starts).await?;
        for dataset in ["shapes", "parts", "fed", "calm"] {
            shapes::track(world, first, dataset).await?;
        }
        recorder::install(&mut conn).await?;
        writers::fill(&mut conn).await?;
        shapes::fill(&mut conn).await?;

        let mut writing: Vec<_> =
            (0..writers::WRITERS).map(|n| tokio::spawn(writers::write(Arc::clone(world), n))).collect();
        writing.push(tokio::spawn(shapes::write(Arc::clone(world))));
        writing.push(tokio::spawn(shapes::write_now_and_then(Arc::clone(world))));
        writing.push(tokio::spawn(publisher::write(Arc::clone(world))));
        let mut asking: Vec<_> =
            (0..clients::CLIENTS).map(|n| tokio::spawn(clients::ask(Arc::clone(world), n))).collect();
        asking.extend(loader::all().map(|(lane, which)| tokio::spawn(loader::load(Arc::clone(world), lane, which))));
        let auditing = tokio::spawn(auditor::audit(Arc::clone(world)));
        let bystander = self.moves.contains(&Move::Locks).then(|| tokio::spawn(bystander::work(Arc::clone(world))));

        if !self.failpoints.is_empty() {
            let begun = Instant::now();
            let names = self.failpoints.len();
            let visited = nemesis::visit(world, self.failpoints.into_iter(), &self.debug).await?;
            println!("first phase: {names} failpoints, {visited} visits in {:.0} s", begun.elapsed().as_secs_f64());
            for index in 0..world.replicas.len() {
                nemesis::perform(world, Act::Blow(index, Blow::Kill), &self.struck).await?;
            }
        }
        world.oracle.lock().await.first_phase_ended();
        nemesis::strike(world, self.plan, &self.struck).await?;
        for replica in &world.replicas {
            replica.links().for_each(Link::heal);
        }
        ddl::rest(world, &self.struck).await?;

        world.writing.store(false, Ordering::SeqCst);
        world.asking.store(false, Ordering::SeqCst);
        let mut commits = 0;
        for writer in writing {
            commits += writer.await?;
        }
        for client in asking {
            client.await?;
        }
        let statements = match bystander {
            Some(bystander) => bystander.await?,
            None => 0,
        };
        publisher::rest(world).await?;
        if !world.is_over() {
            settle(world).await?;
            receiver::settle(world).await?;
            rest(world, &self.struck).await?;
        }
        world.auditing.store(false, Ordering::SeqCst);
        let looks = auditing.await?;
        receiving.abort();

        let mut conn = world.cluster.connect().await?;
        let mut oracle = world.oracle.lock().await;
        if world.is_over() {
            oracle.take_in(&mut conn).await?;
        } else {
            oracle.judge(world, &mut conn, End::OfAll).await?;
        }
        Ok(counts(world, &oracle, commits, statements, looks))
    }
}

fn counts(world: &World, oracle: &Oracle, commits: usize, statements: usize, looks: usize) -> Counts {
    let deaths = recorder::deaths(&oracle.attempts, &world.replicas, &world.report);
    let accepted = locked(&world.ledger).promises.values().map(|promise| promise.lanes.len()).sum();
    let of_links =
        |mishap: fn(&Link) -> &Mishap| world.replicas.iter().map(|replica| mishap(&replica.link).happened()).sum();
    let posts = world.receiver.posts();
    let counted = vec![
        ("deaths", deaths.total(), Least::Of(200)),
        ("zombies", recorder::zombies(&oracle.attempts, &world.report), Least::Of(20)),
        ("answers to COMMIT lost", of_links(Link::lost_answers), Least::Any),
        ("readers silenced", of_links(Link::silent_readers), Least::Any),
        ("exports accepted", accepted, Least::Any),
        ("completed", oracle.count("completed"), Least::Of(60)),
        ("skipped", oracle.count("skipped"), Least::Of(5)),
        ("failed", oracle.count("failed"), Least::Any),
        ("cancelled", oracle.count("cancelled"), Least::Any),
        ("refused because of the change log", oracle.given_up.len(), Least::With(Move::Backfill, 1)),
        ("jobs of several datasets completed", oracle.count_jobs_of_datasets("committed"), Least::Of(10)),
        ("failed", oracle.count_jobs_of_datasets("failed"), Least::Any),
        ("cancelled", oracle.count_jobs_of_datasets("cancelled"), Least::Any),
        ("events posted", posts.ids, Least::Any),
        ("posted again", posts.tries - posts.ids, Least::Of(60)),
        ("held against the database", posts.tries - posts.unchecked - posts.strays, Least::Of(60)),
        ("refused", posts.refused, Least::Any),
        ("dropped", posts.dropped, Least::Any),
        ("answered late or never", posts.late, Least::Any),
        ("of which the database couldn't be asked", posts.unchecked, Least::Any),
        ("of before a put-back", posts.strays, Least::Any),
        ("commits of writers", commits, Least::Any),
        ("statements of the bystander", statements, Least::Any),
        ("looks of the auditor", looks, Least::Any),
        ("replays", oracle.replays, Least::Any),
    ];
    Counts { deaths, counted }
}

/// Drains the queue, and gives each consumer a last delta of a table that nobody changes any more.
async fn settle(world: &World) -> Result<()> {
    let begun = Instant::now();
    let mut conn = world.cluster.connect().await?;
    // Jobs that have not ended, or that have a file without a name.
    let open = "select count(*) from torture.ends where status = 'open'";
    // An export that gave way is retried only after minutes.
    let make_ready = "update cdc_export.jobs set run_at = clock_timestamp()
                      where status = 'pending' and gave_way > 0 and run_at > clock_timestamp()";
    let is_drained = async || {
        sqlx::query(make_ready).execute(&mut conn).await?;
        Ok(count(&mut conn, open).await? == 0)
    };
    if !eventually(DRAIN, is_drained).await? {
        let left = count(&mut conn, open).await?;
        world.report.red("9", format!("{left} jobs are open {DRAIN:?} after the last fault"));
        return Ok(());
    }
    println!("drained in {:.1} s", begun.elapsed().as_secs_f64());
    let address = world.replicas[0].address().context("it runs")?;
    let caller = Caller::new(world, address);
    let mut lanes: Vec<(&Lane, &str)> = LANES.iter().map(|lane| (lane, "delta")).collect();
    while !lanes.is_empty() {
        let mut last = Vec::new();
        for (lane, kind) in lanes {
            let job =
                insist(async || caller.submit(kind, lane.consumer, &json!({ "dataset": lane.dataset })).await).await;
            let job = job.with_context(|| format!("no last {kind} for {}", lane.name))?;
            last.push((lane, kind, job));
        }
        lanes = Vec::new();
        for (lane, kind, job) in last {
            let ended = insist(async || caller.job(&job).await.filter(is_terminal)).await;
            let job = ended.with_context(|| format!("the last export {job} takes too long"))?;
            // The oracle judges whether the refusal had a reason.
            if kind == "delta" && job["error"]["code"] == "full_export_needed" {
                lanes.push((lane, "full"));
            } else if job["status"] != "completed" {
                world.report.red("9", format!("a last {kind}, with no faults about, ended so: {job}"));
            }
        }
    }
    for (lane, which) in loader::all() {
        loader::catch_up(world, lane, which).await?;
    }
    Ok(())
}

/// Asks until there is an answer. A server process may learn late that its clock was set forward. It then takes its new
/// transaction for an idle one and ends it. So even now a caller may be refused with a 503.
async fn insist<T>(ask: impl AsyncFn() -> Option<T>) -> Option<T> {
    at_last(DRAIN, || async { ask().await.ok_or(()) }).await.ok()
}

/// 10: Checks that nothing is left when nothing runs any more.
async fn rest(world: &Arc<World>, binary: &Path) -> Result<()> {
    let mut conn = world.cluster.connect().await?;
    let idle = format!("select count(*) from pg_stat_activity where usename = '{SERVICE}' and state like 'idle in%'");
    if !eventually(Duration::from_secs(5), async || Ok(count(&mut conn, &idle).await? == 0)).await? {
        world.report.red("10", "a transaction stands idle although nothing runs");
    }
    let unknown = world.cluster.unknown_transactions()?;
    if unknown > 0 {
        world.report.red("10", format!("{unknown} transactions were open that their callers didn't know of"));
    }
    for replica in &world.replicas {
        if let Some((descriptors, resident)) = replica.size().await
            && (descriptors > MOST_DESCRIPTORS || resident > MOST_RESIDENT_KIB)
        {
            let size = format!("{descriptors} descriptors, {resident} KiB");
            world.report.red("10", format!("replica {} is left with {size}", replica.index));
        }
    }
    for replica in &world.replicas {
        replica.stop(&world.report).await?;
    }
    let connected = format!("select count(*) from pg_stat_activity where usename = '{SERVICE}'");
    if !eventually(Duration::from_secs(5), async || Ok(count(&mut conn, &connected).await? == 0)).await? {
        world.report.red("10", "connections of the service are left although it is gone");
    }
    // A start sweeps what killed processes left, unless another process swept it before.
    world.replicas[0].start(binary, None, &world.report).await?;
    let swept = async || Ok(world.place.leftovers(|_| false).await?.is_empty());
    eventually(Duration::from_secs(10), swept).await?;
    world.replicas[0].stop(&world.report).await
}

async fn count(conn: &mut PgConnection, sql: &str) -> Result<i64> {
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(conn).await?)
}
