//! The nemesis acts by its plan.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use sqlx::{Executor, PgConnection};
use uuid::Uuid;

use crate::cluster::SERVICE;
use crate::patience::eventually;
use crate::plan::{Act, Blow, Plan, Planned, Quake};
use crate::random::Random;
use crate::replica::{LEASE, Replica, Stopped};
use crate::report::{EXPIRE, locked};
use crate::trial::World;
use crate::upheavals::{self, Upheaval};
use crate::{backfill, ddl, publisher};

/// Longest time until a failpoint is hit while the clients request exports all the time. A longer wait is a hang.
/// Beside a browser and a second torture on two cores, over 30 s passed until one of three processes had a job the
/// others hadn't.
const HIT: Duration = Duration::from_secs(180);
/// Time that a failpoint sleeps. The process is stopped during this time, and wakes behind the failpoint.
const NAP: Duration = Duration::from_millis(1_200);
const HUNG: Duration = Duration::from_secs(15);
/// Longest time from a process's death until its jobs are ready or taken over. The lease, the reaping and a second
/// (invariant 9) are doubled, since the machine does other things too.
const TAKEN_OVER: Duration = Duration::from_millis(2 * (1_000 + 334 + 1_000));

const LATE: Duration = Duration::from_millis(1_000);

/// Runs the second phase: all lists of the plan at once.
pub(crate) async fn strike(world: &Arc<World>, plan: Plan, binary: &Path) -> Result<()> {
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for list in plan.lists {
        let (world, binary) = (Arc::clone(world), binary.to_owned());
        tasks.spawn(async move {
            for Planned { at, act } in list {
                tokio::time::sleep(at.saturating_sub(begun.elapsed())).await;
                if world.is_over() {
                    break;
                }
                // Leaves out late blows and quakes: on a busy machine, a start takes longer than planned. Otherwise,
                // blow upon blow, nothing would ever run, and crash upon crash, no replica would ever start.
                let may_be_left_out = match act {
                    Act::Blow(_, Blow::Store(_)) => false,
                    _ => matches!(act, Act::Blow(..) | Act::Quake(_)),
                };
                if !may_be_left_out || begun.elapsed() <= at + LATE {
                    perform(&world, act, &binary).await?;
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

pub(crate) async fn perform(world: &World, act: Act, binary: &Path) -> Result<()> {
    world.report.announce(&format!("{act:?}"));
    let from = Utc::now();
    match act {
        Act::Blow(index, blow) => hit(world, &world.replicas[index], blow).await?,
        Act::Quake(quake) => shake(world, quake).await?,
        Act::Shaping(shaping) => ddl::make(world, shaping, binary).await?,
        Act::Upheaval(upheaval) => upheavals::turn_over(world, upheaval).await?,
        Act::Clock(seconds) => {
            world.cluster.set_clock(seconds)?;
            // Waits until all processes have read the new time.
            tokio::time::sleep(LEASE).await;
        }
        Act::Subscribing(subscribing) => publisher::make_move(world, subscribing).await,
        Act::Backfill(backfill) => backfill::make(world, backfill).await,
        Act::Overtaking(length) => overtake(world, length, binary).await?,
        Act::DeadStandby(time) => world.cluster.without_standby(time).await?,
    }
    if let Some(harm) = act.harm() {
        let met = if let Act::Blow(index, _) = act { Some(index) } else { None };
        world.report.acted(met, harm, from);
    }
    match act {
        Act::Blow(index, Blow::Kill) => world.replicas[index].start(binary, None, &world.report).await,
        // The copy may be from a moment at which triggers were off or a table was untracked.
        Act::Upheaval(Upheaval::PutBack(_)) => ddl::rest(world, binary).await,
        _ => Ok(()),
    }
}

/// Runs a directed scenario for a control: a worker sleeps before its commit and loses its lease. The process that
/// takes its job is stopped while the worker goes on. Repeats this, since the same process may have taken the job.
async fn overtake(world: &World, length: Duration, binary: &Path) -> Result<()> {
    let begun = Instant::now();
    let (first, others) = world.replicas.split_first().context("there are replicas")?;
    let mut conn = world.cluster.connect().await?;
    while begun.elapsed() < length && !world.is_over() {
        let from = Utc::now();
        first.kill(&world.report).await?;
        world.report.acted(Some(first.index), "kill", from);
        // The sleep is shorter than a lease. Otherwise Postgres would end the idle transaction.
        first.start(binary, Some("worker.extended=sleep:500"), &world.report).await?;
        if !first.hits("worker.extended", HIT).await {
            continue;
        }
        // Has the effect of lost leases, without the delay of the queue: the next free worker takes the job.
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
        // Stops the new owner at once, since an export of a small table takes a few hundredths of a second. Waits for
        // the new owner no longer than the first worker sleeps.
        let since = Instant::now();
        while !leased(&mut conn).await?.iter().any(|(job, owner)| jobs.contains(job) && !first.is(owner))
            && since.elapsed() < LEASE / 2
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let stops = others.iter().map(|replica| stop_for(world, replica, LEASE * 3 / 4));
        try_join_all(stops).await?;
    }
    Ok(())
}

async fn hit(world: &World, replica: &Replica, blow: Blow) -> Result<()> {
    match blow {
        Blow::Kill => replica.kill(&world.report).await?,
        Blow::Stop(time) => {
            until_busy(world, replica).await;
            stop_for(world, replica, time).await?;
        }
        Blow::Link(fault) => replica.link.suffer(fault).await,
        Blow::Store(fault) => {
            if let Some(link) = &replica.store_link {
                link.suffer(fault).await;
            }
        }
        // The act lasts until the mishap happens, but for at most two leases if nobody commits.
        Blow::LoseAnswer => replica.link.lost_answers().bring_about(2 * LEASE).await,
        Blow::SilenceReader => replica.link.silent_readers().bring_about(2 * LEASE).await,
    }
    Ok(())
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
    match quake {
        Quake::Terminate(share) => {
            let sql = format!(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{SERVICE}' and random() * 100 < {share}"
            );
            ask(world, &sql).await;
        }
        Quake::Expire => {
            let sql = "update cdc_export.jobs set lease_expires_at = clock_timestamp() - interval '1 h' where status = 'processing'";
            ask(world, sql).await;
        }
        Quake::Crash => world.cluster.crash().await?,
    }
    Ok(())
}

async fn ask(world: &World, sql: &str) {
    let asked = async {
        // A job whose commit is under way is locked, and its lease doesn't matter any more.
        let sql = format!("set statement_timeout = '1s'; {sql}");
        world.cluster.connect().await?.execute(sqlx::AssertSqlSafe(sql)).await
    };
    if let Err(error) = asked.await {
        world.report.announce(&format!("that went wrong: {error}"));
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Error,
    /// Sleeps past the lease. The process is stopped meanwhile, and wakes when another one has taken its job.
    Sleep,
    /// Sleeps past the time after which a folder that accepts no write counts as hung.
    Hang,
}

/// Runs the first phase: every failpoint with every fault, one after the other on each replica. Returns their number.
pub(crate) async fn visit(world: &World, names: impl Iterator<Item = String>, binary: &Path) -> Result<usize> {
    let mut visits: Vec<(String, Fault)> =
        names.flat_map(|name| [Fault::Kill, Fault::Error, Fault::Sleep].map(|fault| (name.clone(), fault))).collect();
    // A bucket has its own time limit, and lacks this failpoint.
    if visits.iter().any(|(name, _)| name == "sink.write") {
        visits.push(("sink.write".to_owned(), Fault::Hang));
    }
    Random::new(world.seed, 500).shuffle(&mut visits);
    let number = visits.len();
    for (name, fault) in &visits {
        world.report.announce(&format!("planned: {name} {fault:?}"));
    }
    let visits = Mutex::new(visits);
    let visit = async |replica: &Replica| {
        loop {
            let next = locked(&visits).pop();
            let Some((name, fault)) = next else { return anyhow::Ok(()) };
            visit_one(world, replica, &name, fault, binary).await?;
        }
    };
    try_join_all(world.replicas.iter().map(visit)).await?;
    Ok(number)
}

async fn visit_one(world: &World, replica: &Replica, name: &str, fault: Fault, binary: &Path) -> Result<()> {
    let (index, report) = (replica.index, &world.report);
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
    // The process may hit the failpoint before this program knows that it listens.
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
            // Tests what the process does after it wakes.
            tokio::time::sleep(LEASE / 2).await;
        }
    }
    Ok(())
}

async fn leased(conn: &mut PgConnection) -> Result<Vec<(Uuid, String)>> {
    let held = sqlx::query_as("select id, lease_owner from cdc_export.jobs where status = 'processing'");
    Ok(held.fetch_all(conn).await?)
}

/// Invariant 9: the dead process's jobs must be ready or taken over in time. Its next life has another process id.
async fn wait_for_takeover(world: &World, replica: &Replica, name: &str) -> Result<()> {
    let mut conn = world.cluster.connect().await?;
    let lives = replica.lives();
    let dead = lives.split_last().map_or(&[][..], |(_, dead)| dead);
    let is_taken_over = async || {
        let held = leased(&mut conn).await?;
        Ok(!held.iter().any(|(_, owner)| dead.iter().any(|pid| Replica::owns(*pid, owner))))
    };
    if !eventually(TAKEN_OVER, is_taken_over).await? {
        world.report.red("9", format!("after {name}=kill, a job was not taken over within {TAKEN_OVER:?}"));
    }
    Ok(())
}
