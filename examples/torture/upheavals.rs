//! Puts the database back to an earlier state, like an operator's restore or a standby that lagged. This ends an era:
//! the database loses its later records, and the consumers keep what they received.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use uuid::Uuid;

use crate::cluster::Reach;
use crate::era::Delivered;
use crate::oracle::End;
use crate::random::Random;
use crate::report::locked;
use crate::trial::World;
use crate::{auditor, receiver};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upheaval {
    Copy,
    PutBack(Timeline),
    /// A planned failover: a new timeline, and nothing lost.
    Failover,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timeline {
    /// The timeline after a disk was put back.
    Same,
    New,
}

impl Upheaval {
    pub(crate) fn draw(random: &mut Random) -> Upheaval {
        match random.below(100) {
            0..40 => Upheaval::Copy,
            40..62 => Upheaval::PutBack(Timeline::Same),
            62..84 => Upheaval::PutBack(Timeline::New),
            _ => Upheaval::Failover,
        }
    }
}

pub(crate) async fn turn_over(world: &World, upheaval: Upheaval) -> Result<()> {
    let _hands = world.cluster.hands().await;
    world.cluster.stop().await?;
    match upheaval {
        Upheaval::Copy => world.cluster.copy().await?,
        Upheaval::Failover => world.cluster.promote()?,
        Upheaval::PutBack(timeline) => put_back(world, timeline).await?,
    }
    world.cluster.launch(Reach::All).await
}

/// Judges the era while nobody else reaches the server. Then tells everybody who remembers what the database lost.
async fn put_back(world: &World, timeline: Timeline) -> Result<()> {
    // A caller that asked before ignores an answer that arrives now: see `Caller`.
    world.era.fetch_add(1, Ordering::SeqCst);
    let mut oracle = world.oracle.lock().await;
    world.cluster.launch(Reach::OnlyUs).await?;
    auditor::look_once(world).await?;
    let mut conn = world.cluster.connect_aside().await.context("aside, before")?;
    oracle.judge(world, &mut conn, End::OfEra).await?;
    let events = receiver::planned(&mut conn).await?;
    world.cluster.stop().await?;

    world.cluster.put_back().await?;
    if timeline == Timeline::New {
        world.cluster.promote()?;
    }
    world.cluster.launch(Reach::OnlyUs).await?;
    let mut conn = world.cluster.connect_aside().await.context("aside, after")?;
    let completed: Vec<Delivered> =
        sqlx::query_as("select job, sha256 from torture.exports where sha256 is not null").fetch_all(&mut conn).await?;
    oracle.put_back(&HashSet::from_iter(completed));
    let known: Vec<(Uuid, String, bool)> =
        sqlx::query_as("select job, status, is_cancelled from torture.ends").fetch_all(&mut conn).await?;
    let states = known.into_iter().map(|(job, status, cancelled)| (job.to_string(), (status, cancelled)));
    locked(&world.ledger).put_back(&states.collect());
    let (ends, left) = (receiver::ends(&mut conn).await?, receiver::planned(&mut conn).await?);
    world.receiver.put_back(&ends, events, &left);
    world.cluster.stop().await?;
    world.era.fetch_add(1, Ordering::SeqCst);
    Ok(())
}
