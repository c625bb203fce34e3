//! The nemesis, which acts by its plan.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::vec::IntoIter;

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use nix::sys::signal::Signal;
use sqlx::{Executor, PgConnection};
use uuid::Uuid;

use crate::cluster::SERVICE;
use crate::plan::{Blow, Plan, Planned, Quake, StoreBlow};
use crate::proxy::{Link, Swallowing};
use crate::random::Random;
use crate::replica::{LEASE, Replica, Stopped};
use crate::report::{EXPIRE, UPHEAVAL, locked};
use crate::trial::World;
use crate::upheavals::{self, Upheaval};
use crate::{backfill, ddl, publisher};

/// The longest time until a failpoint is hit, with the clients asking for exports all the time: the bound of a hang.
/// Beside a browser and a second torture on two cores, more than 30 s went by until one of three processes had a job
/// that the others hadn't.
const HIT: Duration = Duration::from_secs(180);
/// How long a failpoint sleeps: the process is stopped within, and wakes behind it.
const NAP: Duration = Duration::from_millis(1_200);
/// The time for which a folder hangs.
const HUNG: Duration = Duration::from_secs(15);
/// From the death of a process until its jobs are somebody else's or ready: lease, reaping, a second (invariant 9), and
/// as much again for a machine that does other things too.
const TAKEN_OVER: Duration = Duration::from_millis(2 * (1_000 + 334 + 1_000));

/// A blow or a quake that would come so late is left out.
const LATE: Duration = Duration::from_millis(1_000);

/// The second phase: the plan, each replica's list beside the others.
pub(crate) async fn strike(world: &Arc<World>, plan: Plan, binary: &Path) -> Result<()> {
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (index, blows) in plan.blows.into_iter().enumerate() {
        let (world, binary, mut blows) = (Arc::clone(world), binary.to_owned(), blows.into_iter());
        tasks.spawn(async move {
            while let Some(blow) = next(&world, begun, &mut blows).await {
                // On a machine that is busy a start takes longer than the plan thinks. Blow upon blow nothing would
                // ever run.
                if begun.elapsed() > blow.at + LATE {
                    continue;
                }
                hit(&world, index, blow.what, &binary).await?;
            }
            anyhow::Ok(())
        });
    }
    for (index, blows) in plan.store_blows.into_iter().enumerate() {
        let (world, mut blows) = (Arc::clone(world), blows.into_iter());
        tasks.spawn(async move {
            while let Some(blow) = next(&world, begun, &mut blows).await {
                hit_store(&world, index, blow.what).await;
            }
            anyhow::Ok(())
        });
    }
    let (shaken, mut quakes) = (Arc::clone(world), plan.quakes.into_iter());
    tasks.spawn(async move {
        while let Some(quake) = next(&shaken, begun, &mut quakes).await {
            // Crash upon crash no replica would ever start.
            if begun.elapsed() > quake.at + LATE {
                continue;
            }
            shake(&shaken, quake.what).await?;
        }
        anyhow::Ok(())
    });
    let subscriber = Arc::clone(world);
    tasks.spawn(async move {
        for subscribing in plan.subscribings {
            tokio::time::sleep(subscribing.at.saturating_sub(begun.elapsed())).await;
            subscriber.report.announce(&format!("subscriber: {:?}", subscribing.what));
            publisher::make_move(&subscriber, subscribing.what).await;
        }
        anyhow::Ok(())
    });
    let (filled, mut backfills) = (Arc::clone(world), plan.backfills.into_iter());
    tasks.spawn(async move {
        while let Some(planned) = next(&filled, begun, &mut backfills).await {
            filled.report.announce(&format!("owner: {:?}", planned.what));
            backfill::make(&filled, planned.what).await;
        }
        anyhow::Ok(())
    });
    let (lonely, mut standbys) = (Arc::clone(world), plan.standbys.into_iter());
    tasks.spawn(async move {
        while let Some(dead) = next(&lonely, begun, &mut standbys).await {
            lonely.report.announce(&format!("standby: dead for {:?}", dead.what));
            let from = Utc::now();
            lonely.cluster.without_standby(dead.what).await?;
            lonely.report.acted(None, "dead standby", from);
        }
        anyhow::Ok(())
    });
    let set = Arc::clone(world);
    tasks.spawn(async move {
        for step in plan.clock {
            tokio::time::sleep(step.at.saturating_sub(begun.elapsed())).await;
            set.report.announce(&format!("clock: {:+} s", step.what));
            let from = Utc::now();
            set.cluster.set_clock(step.what)?;
            // Until all have looked at it.
            tokio::time::sleep(LEASE).await;
            set.report.acted(None, EXPIRE, from);
        }
        anyhow::Ok(())
    });
    let (turned, its_binary, mut upheavals) = (Arc::clone(world), binary.to_owned(), plan.upheavals.into_iter());
    tasks.spawn(async move {
        while let Some(upheaval) = next(&turned, begun, &mut upheavals).await {
            turned.report.announce(&format!("all: {:?}", upheaval.what));
            let from = Utc::now();
            upheavals::turn_over(&turned, upheaval.what).await?;
            turned.report.acted(None, UPHEAVAL, from);
            if matches!(upheaval.what, Upheaval::PutBack(_)) {
                // The copy may be of a moment at which the owner had triggers off or a table untracked.
                ddl::rest(&turned, &its_binary).await?;
            }
            turned.report.announce("all: it is done");
        }
        anyhow::Ok(())
    });
    let (owned, binary, mut shapings) = (Arc::clone(world), binary.to_owned(), plan.shapings.into_iter());
    tasks.spawn(async move {
        while let Some(shaping) = next(&owned, begun, &mut shapings).await {
            owned.report.announce(&format!("owner: {:?}", shaping.what));
            ddl::make(&owned, shaping.what, &binary).await?;
        }
        anyhow::Ok(())
    });
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Waits until it is time for the next act. `None`: there is none, or the trial is over.
async fn next<T>(world: &World, begun: Instant, acts: &mut IntoIter<Planned<T>>) -> Option<Planned<T>> {
    let act = acts.next()?;
    tokio::time::sleep(act.at.saturating_sub(begun.elapsed())).await;
    (!world.is_over()).then_some(act)
}

/// A directed scenario, for a control: a worker stands before its commit, its lease runs out, and whoever took the job
/// over is stopped while the first one goes on. Again and again, since it may have been the same process that took it.
pub(crate) async fn overtake(world: &Arc<World>, length: Duration, binary: &Path) -> Result<()> {
    let begun = Instant::now();
    let (first, others) = world.replicas.split_first().context("there are replicas")?;
    let mut conn = world.cluster.connect().await?;
    while begun.elapsed() < length && !world.is_over() {
        let from = Utc::now();
        first.kill(&world.report).await?;
        world.report.acted(Some(first.index), "kill", from);
        // Shorter than a lease, or Postgres would end the transaction that stands idle.
        first.start(binary, Some("worker.extended=sleep:500"), &world.report).await?;
        if !first.hits("worker.extended", HIT).await {
            continue;
        }
        // What the loss of its leases comes to, without the queue between: the next worker that is free takes the job.
        let from = Utc::now();
        let of_first = leased(&mut conn).await?.into_iter().filter(|(_, owner)| first.is(owner));
        let jobs = Vec::from_iter(of_first.map(|(job, _)| job));
        let lost = sqlx::query(
            "update cdc_export.jobs
             set status = 'pending', lease_token = null, lease_owner = null, lease_expires_at = null, purge_hold = null,
                 run_at = clock_timestamp() - interval '30 s'
             where id = any($1) and status = 'processing'",
        );
        lost.bind(&jobs).execute(&mut conn).await?;
        world.report.acted(None, EXPIRE, from);
        // Whoever takes it has to be stopped at once: a small table's export is made within a few hundredths of a
        // second. And no later than the first one stands there.
        let since = Instant::now();
        while !leased(&mut conn).await?.iter().any(|(job, owner)| jobs.contains(job) && !first.is(owner))
            && since.elapsed() < LEASE / 2
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let stops = others.iter().map(|replica| stop_for(world, replica, LEASE * 3 / 4));
        futures_util::future::try_join_all(stops).await?;
    }
    Ok(())
}

async fn hit(world: &Arc<World>, index: usize, blow: Blow, binary: &Path) -> Result<()> {
    let (replica, report) = (&world.replicas[index], &world.report);
    report.announce(&format!("replica {index}: {blow:?}"));
    let from = Utc::now();
    let what = match blow {
        Blow::Kill => {
            replica.kill(report).await?;
            report.acted(Some(index), "kill", from);
            replica.start(binary, None, report).await?;
            return Ok(());
        }
        Blow::Stop(time) => {
            until_busy(world, replica).await;
            stop_for(world, replica, time).await?;
            "stop"
        }
        Blow::Hole(time) => {
            swallow_for(&replica.link, time).await;
            "black hole"
        }
        Blow::Slow(by) => {
            slow_down(&replica.link, by).await;
            "slow link"
        }
        Blow::Reset => {
            replica.link.reset();
            "reset"
        }
        Blow::LoseAnswer => {
            let lost = replica.link.answers_lost();
            replica.link.lose_an_answer();
            // An act lasts until it is over, but not for ever if nobody commits.
            let asked = Instant::now();
            while replica.link.answers_lost() == lost && asked.elapsed() < 2 * LEASE {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            "lost answer"
        }
        Blow::SilenceReader => {
            let silenced = replica.link.readers_silenced();
            replica.link.silence_a_reader();
            let asked = Instant::now();
            while replica.link.readers_silenced() == silenced && asked.elapsed() < 2 * LEASE {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            "silent reader"
        }
    };
    report.acted(Some(index), what, from);
    Ok(())
}

/// What happens on a replica's way to its bucket.
async fn hit_store(world: &World, index: usize, blow: StoreBlow) {
    let Some(link) = &world.replicas[index].store_link else { return };
    world.report.announce(&format!("replica {index}, store: {blow:?}"));
    let from = Utc::now();
    let what = match blow {
        StoreBlow::Hole(time) => {
            swallow_for(link, time).await;
            "black hole before the store"
        }
        StoreBlow::Slow(by) => {
            slow_down(link, by).await;
            "slow store"
        }
        StoreBlow::Reset => {
            link.reset();
            "reset by the store"
        }
        StoreBlow::Refuse(time) => {
            link.refuse_completions(true);
            tokio::time::sleep(time).await;
            link.refuse_completions(false);
            "no completions"
        }
    };
    world.report.acted(Some(index), what, from);
}

async fn swallow_for(link: &Link, time: Duration) {
    link.swallow(Swallowing::Everything);
    tokio::time::sleep(time).await;
    link.swallow(Swallowing::Nothing);
}

async fn slow_down(link: &Link, by: Duration) {
    link.slow_down(by);
    tokio::time::sleep(2 * LEASE).await;
    link.slow_down(Duration::ZERO);
}

/// Waits until a replica works on a job, for two leases at most. A stop of an idle process shows nothing.
async fn until_busy(world: &World, replica: &Replica) {
    let Ok(mut conn) = world.cluster.connect().await else { return };
    let asked = Instant::now();
    while asked.elapsed() < 2 * LEASE
        && let Ok(held) = leased(&mut conn).await
        && !held.iter().any(|(_, owner)| replica.is(owner))
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn stop_for(world: &World, replica: &Replica, time: Duration) -> Result<()> {
    let from = Utc::now();
    let Some(pid) = replica.signal(Signal::SIGSTOP).await? else { return Ok(()) };
    tokio::time::sleep(time).await;
    let to = Utc::now();
    replica.signal(Signal::SIGCONT).await?;
    world.report.stopped(Stopped { pid, from, to });
    Ok(())
}

async fn shake(world: &World, quake: Quake) -> Result<()> {
    world.report.announce(&format!("all: {quake:?}"));
    let from = Utc::now();
    let what = match quake {
        Quake::Terminate(share) => {
            let sql = format!(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{SERVICE}' and random() * 100 < {share}"
            );
            ask(world, &sql).await;
            "termination"
        }
        Quake::Expire => {
            ask(
                world,
                "update cdc_export.jobs set lease_expires_at = clock_timestamp() - interval '1 h' where status = 'processing'",
            )
            .await;
            EXPIRE
        }
        Quake::Crash => {
            world.cluster.crash().await?;
            "crash"
        }
    };
    world.report.acted(None, what, from);
    Ok(())
}

async fn ask(world: &World, sql: &str) {
    match world.cluster.connect().await {
        // A job whose commit is under way is locked, and its lease of no importance any more.
        Ok(mut conn) => {
            let sql = format!("set statement_timeout = '1s'; {sql}");
            if let Err(error) = conn.execute(sqlx::AssertSqlSafe(sql)).await {
                world.report.announce(&format!("that went wrong: {error}"));
            }
        }
        Err(error) => world.report.announce(&format!("that went wrong: {error}")),
    }
}

/// What a failpoint does.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Error,
    /// Past the lease, as a process that is stopped there and wakes when its job is somebody else's.
    Sleep,
    /// Past the time after which a folder that takes no write counts as hung.
    Hang,
}

/// The first phase: every failpoint with every fault, each replica working on one of them after the other. Returns how
/// many there were.
pub(crate) async fn visit(world: &Arc<World>, names: impl Iterator<Item = String>, binary: &Path) -> Result<usize> {
    let mut visits: Vec<(String, Fault)> =
        names.flat_map(|name| [Fault::Kill, Fault::Error, Fault::Sleep].map(|fault| (name.clone(), fault))).collect();
    // A bucket has a limit of its own.
    if visits.iter().any(|(name, _)| name == "sink.write") {
        visits.push(("sink.write".to_owned(), Fault::Hang));
    }
    Random::new(world.seed, 500).shuffle(&mut visits);
    let number = visits.len();
    for (name, fault) in &visits {
        world.report.announce(&format!("planned: {name} {fault:?}"));
    }
    let visits = Arc::new(Mutex::new(visits));
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..world.replicas.len() {
        let (world, visits, binary) = (Arc::clone(world), Arc::clone(&visits), binary.to_owned());
        tasks.spawn(async move {
            loop {
                let next = locked(&visits).pop();
                let Some((name, fault)) = next else { break };
                visit_one(&world, index, &name, fault, &binary).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(number)
}

async fn visit_one(world: &Arc<World>, index: usize, name: &str, fault: Fault, binary: &Path) -> Result<()> {
    let (replica, report) = (&world.replicas[index], &world.report);
    report.announce(&format!("replica {index}: {name} {fault:?}"));
    let armed = match fault {
        Fault::Kill => format!("{name}=kill"),
        Fault::Error => format!("{name}=error"),
        Fault::Sleep => format!("{name}=sleep:{}", NAP.as_millis()),
        Fault::Hang => format!("{name}=sleep:{},sink.stall=time:2000", HUNG.as_millis()),
    };
    let from = Utc::now();
    replica.kill(report).await?;
    report.acted(Some(index), "kill", from);
    // It may be hit before we know that the process listens.
    let from = Utc::now();
    replica.start(binary, Some(&armed), report).await?;
    if !replica.hits(name, HIT).await {
        report.red("coverage", format!("{name} ({fault:?}) was not hit within {HIT:?}"));
        return Ok(());
    }
    match fault {
        Fault::Kill => {
            ensure!(replica.dies(Duration::from_secs(5)).await.is_some(), "{name}=kill didn't kill");
            report.acted(Some(index), "failpoint", from);
            replica.start(binary, None, report).await?;
            wait_for_takeover(world, replica, name).await?;
        }
        Fault::Error => report.acted(Some(index), "failpoint", from),
        Fault::Hang => {
            tokio::time::sleep(HUNG).await;
            report.acted(Some(index), "failpoint", from);
        }
        Fault::Sleep => {
            stop_for(world, replica, LEASE * 5 / 2).await?;
            report.acted(Some(index), "failpoint", from);
            // What it does after waking is what this is about.
            tokio::time::sleep(LEASE / 2).await;
        }
    }
    Ok(())
}

/// The jobs at which somebody works, each with its lease's owner.
async fn leased(conn: &mut PgConnection) -> Result<Vec<(Uuid, String)>> {
    let held = sqlx::query_as("select id, lease_owner from cdc_export.jobs where status = 'processing'");
    Ok(held.fetch_all(conn).await?)
}

/// Invariant 9: what the dead process ran is ready or somebody else's in time. Its later life has another process id.
async fn wait_for_takeover(world: &World, replica: &Replica, name: &str) -> Result<()> {
    let begun = Instant::now();
    let mut conn = world.cluster.connect().await?;
    let lives = replica.lives();
    let (_, dead) = lives.split_last().map_or((0, &[][..]), |(now, dead)| (*now, dead));
    loop {
        let left = leased(&mut conn).await?.iter().any(|(_, owner)| dead.iter().any(|pid| Replica::owns(*pid, owner)));
        if !left {
            return Ok(());
        }
        if begun.elapsed() > TAKEN_OVER {
            world.report.red("9", format!("after {name}=kill, a job was not taken over within {TAKEN_OVER:?}"));
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
