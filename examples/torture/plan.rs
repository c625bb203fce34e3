//! The nemesis's plan. The seed decides it before the run begins.

use std::time::Duration;

use clap::ValueEnum;

use crate::backfill::Backfill;
use crate::clock;
use crate::ddl::Shaping;
use crate::publisher::Subscribing;
use crate::random::Random;
use crate::replica::LEASE;
use crate::report::{EXPIRE, UPHEAVAL};
use crate::upheavals::{Timeline, Upheaval};

/// Pause after a blow to a reader: the service gives up a silent one after five seconds, undisturbed by other blows.
const SILENT: Duration = Duration::from_secs(8);

/// A fault of one replica.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Blow {
    Kill,
    /// Sends SIGSTOP, and SIGCONT after this time.
    Stop(Duration),
    /// Disturbs the connections to Postgres.
    Link(LinkFault),
    /// Disturbs the connections to the bucket.
    Store(LinkFault),
    LoseAnswer,
    /// Silences one reader's connection, while all other connections live.
    SilenceReader,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkFault {
    /// Holds all data back for this time, and delivers it afterwards.
    Hole(Duration),
    /// Delays each piece by this time, for two leases.
    Slow(Duration),
    /// Resets the link's connections.
    Reset,
    /// Refuses to complete uploads for this time.
    Refuse(Duration),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Quake {
    /// Runs `pg_terminate_backend` for this percentage of the service's backends.
    Terminate(u64),
    /// Ends every lease, like a jump of the database's clock. The workers live, and don't know.
    Expire,
    Crash,
}

/// A kind of act beside kills and cuts. A run has some or all of these kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Move {
    /// The tables' owner changes the shape of the tables.
    Ddl,
    /// A subscription that writes into a tracked table is paused, resumed and made anew.
    Subscription,
    /// The database is restored from a copy of itself.
    Restores,
    /// The database's clock is set forward and back.
    Clock,
    /// The tables' owner changes so many rows at once that the change log exceeds its bound.
    Backfill,
    /// An application locks tables, while a folder hangs and the synchronous standby is dead.
    Locks,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// Makes a blow against the replica with this index.
    Blow(usize, Blow),
    Quake(Quake),
    Shaping(Shaping),
    Upheaval(Upheaval),
    /// Sets the offset of the database's clock, in seconds.
    Clock(i64),
    Subscribing(Subscribing),
    Backfill(Backfill),
    /// Makes commits wait for a dead synchronous standby, for this time.
    DeadStandby(Duration),
    /// Takes jobs over from workers that live, for this time.
    Overtaking(Duration),
}

impl Act {
    /// Returns the cause of death of the attempts that this act ends, or `None` if it ends none.
    pub(crate) fn harm(self) -> Option<&'static str> {
        Some(match self {
            Act::Blow(_, Blow::Kill) => "kill",
            Act::Blow(_, Blow::Stop(_)) => "stop",
            Act::Blow(_, Blow::Link(LinkFault::Hole(_))) => "black hole",
            Act::Blow(_, Blow::Link(LinkFault::Slow(_))) => "slow link",
            Act::Blow(_, Blow::Link(LinkFault::Reset | LinkFault::Refuse(_))) => "reset",
            Act::Blow(_, Blow::LoseAnswer) => "lost answer",
            Act::Blow(_, Blow::SilenceReader) => "silent reader",
            Act::Blow(_, Blow::Store(_)) => "fault before the store",
            Act::Quake(Quake::Terminate(_)) => "termination",
            Act::Quake(Quake::Crash) => "crash",
            Act::Quake(Quake::Expire) | Act::Clock(_) => EXPIRE,
            Act::Upheaval(_) => UPHEAVAL,
            Act::DeadStandby(_) => "dead standby",
            Act::Shaping(_) | Act::Subscribing(_) | Act::Backfill(_) | Act::Overtaking(_) => return None,
        })
    }
}

pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) act: Act,
}

/// All faults of a run's second phase: one list per replica, one for all replicas, and one per kind of move. The acts
/// of a list follow one another.
pub(crate) struct Plan {
    pub(crate) lists: Vec<Vec<Planned>>,
}

impl Plan {
    pub(crate) fn new(seed: u64, replicas: usize, length: Duration, moves: &[Move]) -> Plan {
        // Each list has its own stream of random numbers. So leaving a list out doesn't change the others.
        let random = |of| Random::new(seed, of);
        let blows = (0..replicas).map(|replica| blows(replica, &mut random(300 + replica as u64), length));
        let moves = Move::value_variants().iter().filter(|kind| moves.contains(kind));
        let moves = moves.map(|kind| acts_of(*kind, &mut random(600 + 50 * *kind as u64), length));
        Plan { lists: blows.chain([quakes(&mut random(400), length)]).chain(moves).collect() }
    }

    /// Adds faults between the replicas and their bucket.
    pub(crate) fn with_store_blows(mut self, seed: u64, replicas: usize, length: Duration) -> Plan {
        let blows = |replica| store_blows(replica, &mut Random::new(seed, 350 + replica as u64), length);
        self.lists.extend((0..replicas).map(blows));
        self
    }

    /// Plans a directed scenario: see [`crate::nemesis::overtake`].
    pub(crate) fn of_overtaking(length: Duration) -> Plan {
        Plan { lists: vec![vec![Planned { at: Duration::ZERO, act: Act::Overtaking(length) }]] }
    }

    /// Plans a directed scenario: COMMITs go unanswered.
    pub(crate) fn of_lost_answers(replicas: usize, length: Duration) -> Plan {
        Plan::of_one_blow(Blow::LoseAnswer, replicas, length, |replica| 300 + 30 * replica)
    }

    /// Plans a directed scenario: readers fall silent.
    pub(crate) fn of_silent_readers(replicas: usize, length: Duration) -> Plan {
        Plan::of_one_blow(Blow::SilenceReader, replicas, length, |replica| 2_000 + 300 * replica)
    }

    /// Plans the same blow against each replica again and again. `millis` is the pause by the replica's index.
    fn of_one_blow(blow: Blow, replicas: usize, length: Duration, millis: fn(u64) -> u64) -> Plan {
        let blows = |replica| {
            let pause = Duration::from_millis(millis(replica as u64));
            spread(pause, length, || (Act::Blow(replica, blow), pause))
        };
        Plan { lists: (0..replicas).map(blows).collect() }
    }

    /// Plans a directed scenario: copies the database while exports run, and puts the copy back when they are done. For
    /// a while after that, no replica can complete an upload. Repeats this.
    pub(crate) fn of_restores(replicas: usize, length: Duration) -> Plan {
        let second = Duration::from_secs;
        let begins = (0..).map(|n| second(1 + 34 * n)).take_while(|begin| *begin + second(34) < length);
        let mut acts = vec![(4, Act::Upheaval(Upheaval::Copy)), (16, Act::Upheaval(Upheaval::PutBack(Timeline::New)))];
        for replica in 0..replicas {
            acts.push((0, Act::Blow(replica, Blow::Store(LinkFault::Hole(second(5))))));
            acts.push((16, Act::Blow(replica, Blow::Store(LinkFault::Refuse(second(16))))));
        }
        let again = |(at, act)| begins.clone().map(|begin| Planned { at: begin + second(at), act }).collect();
        Plan { lists: acts.into_iter().map(again).collect() }
    }

    pub(crate) fn text(&self) -> String {
        let mut lines: Vec<_> =
            self.lists.iter().flatten().map(|planned| (planned.at, format!("{:?}", planned.act))).collect();
        lines.sort();
        lines.iter().map(|(at, line)| format!("{:8.3} {line}\n", at.as_secs_f64())).collect()
    }
}

/// Draws acts until the end. `draw` returns an act, and the time from that act to the next.
fn spread(first: Duration, length: Duration, mut draw: impl FnMut() -> (Act, Duration)) -> Vec<Planned> {
    let (mut planned, mut at) = (Vec::new(), first);
    while at < length {
        let (act, pause) = draw();
        planned.push(Planned { at, act });
        at += pause;
    }
    planned
}

/// Returns a fault that lasts for `time`, and this time.
fn lasting<T>(what: fn(Duration) -> T, time: Duration) -> (T, Duration) {
    (what(time), time)
}

fn blows(replica: usize, random: &mut Random, length: Duration) -> Vec<Planned> {
    spread(random.millis(500, 2_000), length, || {
        let (what, lasts) = match random.below(100) {
            0..48 => (Blow::Kill, Duration::from_millis(200)),
            48..70 => lasting(Blow::Stop, random.millis(1_500, 3 * LEASE.as_millis() as u64)),
            70..78 => lasting(|time| Blow::Link(LinkFault::Hole(time)), random.millis(400, 2_500)),
            78..84 => (Blow::Link(LinkFault::Slow(random.millis(30, 150))), 2 * LEASE),
            84..90 => (Blow::Link(LinkFault::Reset), Duration::ZERO),
            90..96 => (Blow::LoseAnswer, Duration::ZERO),
            _ => (Blow::SilenceReader, SILENT),
        };
        (Act::Blow(replica, what), lasts + random.millis(500, 1_800))
    })
}

fn store_blows(replica: usize, random: &mut Random, length: Duration) -> Vec<Planned> {
    spread(random.millis(500, 2_000), length, || {
        let (what, lasts) = match random.below(100) {
            0..35 => (LinkFault::Reset, Duration::ZERO),
            35..60 => lasting(LinkFault::Hole, random.millis(400, 2_500)),
            60..75 => (LinkFault::Slow(random.millis(30, 150)), 2 * LEASE),
            _ => lasting(LinkFault::Refuse, random.millis(300, 4_000)),
        };
        (Act::Blow(replica, Blow::Store(what)), lasts + random.millis(1_000, 4_000))
    })
}

fn quakes(random: &mut Random, length: Duration) -> Vec<Planned> {
    spread(random.millis(1_000, 4_000), length, || {
        let what = match random.below(100) {
            0..50 => Quake::Terminate(random.between(20, 100)),
            50..88 => Quake::Expire,
            _ => Quake::Crash,
        };
        (Act::Quake(what), random.millis(1_500, 5_000))
    })
}

fn acts_of(kind: Move, random: &mut Random, length: Duration) -> Vec<Planned> {
    match kind {
        Move::Ddl => spread(random.millis(1_000, 3_000), length, || {
            (Act::Shaping(Shaping::draw(random)), random.millis(800, 5_000))
        }),
        Move::Subscription => {
            let mut planned = vec![Planned { at: Duration::ZERO, act: Act::Subscribing(Subscribing::Anew) }];
            planned.extend(spread(random.millis(3_000, 8_000), length, || {
                (Act::Subscribing(Subscribing::draw(random)), random.millis(2_000, 9_000))
            }));
            planned
        }
        Move::Restores => {
            let at = random.millis(3_000, 8_000);
            let mut planned = vec![Planned { at, act: Act::Upheaval(Upheaval::Copy) }];
            // Leaves the clients 5 s to learn of the last restore.
            let length = length.saturating_sub(Duration::from_secs(5));
            planned.extend(spread(at + random.millis(12_000, 35_000), length, || {
                (Act::Upheaval(Upheaval::draw(random)), random.millis(12_000, 35_000))
            }));
            planned
        }
        Move::Clock => spread(random.millis(2_000, 6_000), length, || {
            let (seconds, stays) = clock::draw(random);
            (Act::Clock(seconds), stays)
        }),
        Move::Backfill => spread(random.millis(3_000, 8_000), length, || {
            (Act::Backfill(Backfill::draw(random)), random.millis(15_000, 40_000))
        }),
        Move::Locks => spread(random.millis(4_000, 12_000), length, || {
            (Act::DeadStandby(random.millis(1_000, 6_000)), random.millis(15_000, 40_000))
        }),
    }
}
