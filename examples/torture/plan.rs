//! The nemesis's plan. The seed decides it before the run begins.

use std::time::Duration;

use crate::backfill::Backfill;
use crate::clock;
use crate::ddl::Shaping;
use crate::moves::Move;
use crate::publisher::Subscribing;
use crate::random::Random;
use crate::replica::LEASE;
use crate::upheavals::{Timeline, Upheaval};

/// A reader that hears nothing is given up after five seconds: nothing else shall meet its replica meanwhile.
const SILENT: Duration = Duration::from_secs(8);

/// What is done to one replica.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Blow {
    /// SIGKILL, and a new process.
    Kill,
    /// SIGSTOP, and SIGCONT after so long.
    Stop(Duration),
    /// Nothing gets through to Postgres and back for so long; it comes afterwards.
    Hole(Duration),
    /// Every piece takes so much longer, for two leases.
    Slow(Duration),
    /// Its connections are reset.
    Reset,
    /// The answer to a COMMIT is lost.
    LoseAnswer,
    /// A reader hears nothing any more, while all other connections live.
    SilenceReader,
}

/// What is done to all.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Quake {
    /// `pg_terminate_backend` for so many of a hundred of the service's backends.
    Terminate(u64),
    /// Every lease has run out, as after a jump of the database's clock: its workers live, and don't know.
    Expire,
    /// Postgres crashes and recovers.
    Crash,
}

/// What is done to one replica's way to its bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StoreBlow {
    /// Nothing gets through for so long.
    Hole(Duration),
    /// Every piece takes so much longer, for two leases.
    Slow(Duration),
    /// Its connections are reset.
    Reset,
    /// For so long no upload can be completed.
    Refuse(Duration),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned<T> {
    pub(crate) at: Duration,
    pub(crate) what: T,
}

/// All faults of a run's second phase: a list for each replica, one for what meets them all, and one for each kind of
/// move.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) blows: Vec<Vec<Planned<Blow>>>,
    pub(crate) store_blows: Vec<Vec<Planned<StoreBlow>>>,
    pub(crate) quakes: Vec<Planned<Quake>>,
    pub(crate) shapings: Vec<Planned<Shaping>>,
    pub(crate) upheavals: Vec<Planned<Upheaval>>,
    /// How far the database's clock is off, in seconds.
    pub(crate) clock: Vec<Planned<i64>>,
    pub(crate) subscribings: Vec<Planned<Subscribing>>,
    pub(crate) backfills: Vec<Planned<Backfill>>,
    /// The times for which the synchronous standby is dead.
    pub(crate) standbys: Vec<Planned<Duration>>,
}

impl Plan {
    pub(crate) fn new(seed: u64, replicas: usize, length: Duration, moves: &[Move]) -> Plan {
        let blows = (0..replicas).map(|replica| blows(&mut Random::new(seed, 300 + replica as u64), length));
        let has = |what| moves.contains(&what);
        // A stream of its own for each kind: leaving one away leaves the others as they are.
        let shapings = if has(Move::Ddl) { shapings(&mut Random::new(seed, 600), length) } else { Vec::new() };
        let clock = if has(Move::Clock) { steps(&mut Random::new(seed, 800), length) } else { Vec::new() };
        let subscribings =
            if has(Move::Subscription) { subscribings(&mut Random::new(seed, 900), length) } else { Vec::new() };
        let upheavals = if has(Move::Restores) { upheavals(&mut Random::new(seed, 700), length) } else { Vec::new() };
        let backfills = if has(Move::Backfill) { backfills(&mut Random::new(seed, 650), length) } else { Vec::new() };
        let standbys = if has(Move::Locks) { standbys(&mut Random::new(seed, 660), length) } else { Vec::new() };
        Plan {
            standbys,
            blows: blows.collect(),
            quakes: quakes(&mut Random::new(seed, 400), length),
            shapings,
            upheavals,
            clock,
            subscribings,
            backfills,
            ..Plan::default()
        }
    }

    /// The same with what happens between the replicas and their bucket.
    pub(crate) fn with_store_blows(mut self, seed: u64, length: Duration) -> Plan {
        let blows = |replica| store_blows(&mut Random::new(seed, 350 + replica as u64), length);
        self.store_blows = (0..self.blows.len()).map(blows).collect();
        self
    }

    /// For a directed scenario: COMMITs go unanswered.
    pub(crate) fn of_lost_answers(replicas: usize, length: Duration) -> Plan {
        let losses = |replica| every(300 + 30 * replica as u64, Blow::LoseAnswer, length);
        Plan { blows: (0..replicas).map(losses).collect(), ..Plan::default() }
    }

    /// For a directed scenario: readers fall silent.
    pub(crate) fn of_silent_readers(replicas: usize, length: Duration) -> Plan {
        let silences = |replica| every(2_000 + 300 * replica as u64, Blow::SilenceReader, length);
        Plan { blows: (0..replicas).map(silences).collect(), ..Plan::default() }
    }

    /// For a directed scenario: a copy of the database is made in which exports are under way, and put back when they
    /// are done; for a while after that no replica can complete an upload. Again and again.
    pub(crate) fn of_restores(replicas: usize, length: Duration) -> Plan {
        let second = Duration::from_secs;
        let mut plan = Plan { store_blows: vec![Vec::new(); replicas], ..Plan::default() };
        for begin in (0..).map(|n| second(1 + 34 * n)).take_while(|begin| *begin + second(34) < length) {
            let (copied, put_back) = (begin + second(4), begin + second(16));
            plan.upheavals.push(Planned { at: copied, what: Upheaval::Copy });
            plan.upheavals.push(Planned { at: put_back, what: Upheaval::PutBack(Timeline::New) });
            for blows in &mut plan.store_blows {
                blows.push(Planned { at: begin, what: StoreBlow::Hole(second(5)) });
                blows.push(Planned { at: put_back, what: StoreBlow::Refuse(second(16)) });
            }
        }
        plan
    }

    pub(crate) fn text(&self) -> String {
        let mut lines = Vec::new();
        for (replica, blows) in self.blows.iter().enumerate() {
            lines.extend(blows.iter().map(|blow| (blow.at, format!("replica {replica}: {:?}", blow.what))));
        }
        for (replica, blows) in self.store_blows.iter().enumerate() {
            lines.extend(blows.iter().map(|blow| (blow.at, format!("replica {replica}, store: {:?}", blow.what))));
        }
        lines.extend(self.quakes.iter().map(|quake| (quake.at, format!("all: {:?}", quake.what))));
        lines.extend(self.shapings.iter().map(|shaping| (shaping.at, format!("owner: {:?}", shaping.what))));
        lines.extend(self.upheavals.iter().map(|upheaval| (upheaval.at, format!("all: {:?}", upheaval.what))));
        lines.extend(self.clock.iter().map(|step| (step.at, format!("clock: {:+} s", step.what))));
        lines.extend(self.subscribings.iter().map(|what| (what.at, format!("subscriber: {:?}", what.what))));
        lines.extend(self.backfills.iter().map(|backfill| (backfill.at, format!("owner: {:?}", backfill.what))));
        lines.extend(self.standbys.iter().map(|dead| (dead.at, format!("standby: dead for {:?}", dead.what))));
        lines.sort();
        lines.iter().map(|(at, line)| format!("{:8.3} {line}\n", at.as_secs_f64())).collect()
    }
}

fn every<T: Copy>(millis: u64, what: T, length: Duration) -> Vec<Planned<T>> {
    let times = (1..).map(|n| Duration::from_millis(n * millis)).take_while(|at| *at < length);
    times.map(|at| Planned { at, what }).collect()
}

/// Draws faults until the end. Each comes with the time from it to the next.
fn spread<T>(first: Duration, length: Duration, mut draw: impl FnMut() -> (T, Duration)) -> Vec<Planned<T>> {
    let (mut planned, mut at) = (Vec::new(), first);
    while at < length {
        let (what, pause) = draw();
        planned.push(Planned { at, what });
        at += pause;
    }
    planned
}

/// A fault that is over after so long.
fn lasting<T>(what: fn(Duration) -> T, time: Duration) -> (T, Duration) {
    (what(time), time)
}

fn blows(random: &mut Random, length: Duration) -> Vec<Planned<Blow>> {
    spread(random.millis(500, 2_000), length, || {
        let (what, lasts) = match random.below(100) {
            0..48 => (Blow::Kill, Duration::from_millis(200)),
            48..70 => lasting(Blow::Stop, random.millis(1_500, 3 * LEASE.as_millis() as u64)),
            70..78 => lasting(Blow::Hole, random.millis(400, 2_500)),
            78..84 => (Blow::Slow(random.millis(30, 150)), 2 * LEASE),
            84..90 => (Blow::Reset, Duration::ZERO),
            90..96 => (Blow::LoseAnswer, Duration::ZERO),
            _ => (Blow::SilenceReader, SILENT),
        };
        (what, lasts + random.millis(500, 1_800))
    })
}

fn store_blows(random: &mut Random, length: Duration) -> Vec<Planned<StoreBlow>> {
    spread(random.millis(500, 2_000), length, || {
        let (what, lasts) = match random.below(100) {
            0..35 => (StoreBlow::Reset, Duration::ZERO),
            35..60 => lasting(StoreBlow::Hole, random.millis(400, 2_500)),
            60..75 => (StoreBlow::Slow(random.millis(30, 150)), 2 * LEASE),
            _ => lasting(StoreBlow::Refuse, random.millis(300, 4_000)),
        };
        (what, lasts + random.millis(1_000, 4_000))
    })
}

fn quakes(random: &mut Random, length: Duration) -> Vec<Planned<Quake>> {
    spread(random.millis(1_000, 4_000), length, || {
        let what = match random.below(100) {
            0..50 => Quake::Terminate(random.between(20, 100)),
            50..88 => Quake::Expire,
            _ => Quake::Crash,
        };
        (what, random.millis(1_500, 5_000))
    })
}

fn shapings(random: &mut Random, length: Duration) -> Vec<Planned<Shaping>> {
    spread(random.millis(1_000, 3_000), length, || (Shaping::draw(random), random.millis(800, 5_000)))
}

fn steps(random: &mut Random, length: Duration) -> Vec<Planned<i64>> {
    spread(random.millis(2_000, 6_000), length, || (clock::draw(random), random.millis(3_000, 15_000)))
}

fn subscribings(random: &mut Random, length: Duration) -> Vec<Planned<Subscribing>> {
    let later =
        spread(random.millis(3_000, 8_000), length, || (Subscribing::draw(random), random.millis(2_000, 9_000)));
    [vec![Planned { at: Duration::ZERO, what: Subscribing::Anew }], later].concat()
}

fn backfills(random: &mut Random, length: Duration) -> Vec<Planned<Backfill>> {
    spread(random.millis(3_000, 8_000), length, || (Backfill::draw(random), random.millis(15_000, 40_000)))
}

fn standbys(random: &mut Random, length: Duration) -> Vec<Planned<Duration>> {
    spread(random.millis(4_000, 12_000), length, || (random.millis(1_000, 6_000), random.millis(15_000, 40_000)))
}

fn upheavals(random: &mut Random, length: Duration) -> Vec<Planned<Upheaval>> {
    let mut at = random.millis(3_000, 8_000);
    let mut planned = vec![Planned { at, what: Upheaval::Copy }];
    loop {
        at += random.millis(12_000, 35_000);
        // Time is left to be told of it.
        if at + Duration::from_secs(5) > length {
            return planned;
        }
        planned.push(Planned { at, what: Upheaval::draw(random) });
    }
}
