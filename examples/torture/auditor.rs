//! The auditor lists the files and queries the tables twenty times a second. It keeps a copy of each file as it first
//! saw that file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use sqlx::PgConnection;

use crate::clients::sha256;
use crate::era::ExportId;
use crate::place::Identity;
use crate::report::locked;
use crate::trial::World;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Number of known files that each round checks again, in rotation: checking thousands would take too long.
const AGAIN: usize = 200;

/// A file as the auditor first saw it under its final name.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) identity: Identity,
    pub(crate) sha256: String,
    pub(crate) copy: PathBuf,
    /// The export that the file belongs to. `None` until the auditor has queried the database.
    export: Option<ExportId>,
}

#[derive(Default)]
pub(crate) struct Archive {
    pub(crate) files: BTreeMap<String, Seen>,
    /// Names of files that a client asked to remove. A restored database doesn't know that they ever existed.
    pub(crate) removed: HashSet<String>,
}

impl Archive {
    pub(crate) fn exports(&self) -> Vec<(String, String)> {
        let known = self.files.values().filter_map(|seen| seen.export.as_ref());
        known.map(|(job, lane)| (job.to_string(), lane.clone())).collect()
    }
}

/// Audits until `auditing` becomes false. Returns the number of rounds.
pub(crate) async fn audit(world: Arc<World>) -> usize {
    let mut looks = 0;
    let mut turn = 0;
    let mut conn = None;
    let mut rounds = tokio::time::interval(LOOK_EVERY);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while world.auditing.load(Ordering::SeqCst) {
        rounds.tick().await;
        if let Err(error) = look_at_files(&world, &mut turn).await {
            world.report.red("5", format!("the files can't be looked at: {error:#}"));
        }
        // Postgres accepts no connection between its crash and the end of its recovery.
        if conn.is_none() {
            conn = world.cluster.connect().await.ok();
        }
        if let Some(asked) = &mut conn
            && look_at_tables(&world, asked).await.is_err()
        {
            conn = None;
        }
        looks += 1;
    }
    looks
}

pub(crate) async fn look_once(world: &World) -> Result<()> {
    look_at_files(world, &mut 0).await
}

async fn look_at_files(world: &World, turn: &mut usize) -> Result<()> {
    let listing = world.place.list().await?;
    let finals = &listing.finals;
    let mut new = Vec::new();
    {
        let archive = locked(&world.archive);
        // A client removed this file before the database was restored, and another export has its name now.
        let may_be_another = |name: &String| world.era() > 0 && archive.removed.contains(name);
        let is_due = |name: &&String| !archive.files.contains_key(*name) || may_be_another(name);
        let in_turn = (0..finals.len().min(AGAIN)).map(|at| &finals[(*turn + at) % finals.len()]);
        for name in finals.iter().filter(is_due).chain(in_turn) {
            let Some(now) = listing.identity(name) else { continue };
            match archive.files.get(name) {
                Some(seen) if seen.identity == now => continue,
                Some(seen) if !may_be_another(name) => {
                    world.report.red("5", format!("{name} was {:?} and is {now:?} now", seen.identity));
                }
                _ => {}
            }
            new.push((name.clone(), now));
        }
    }
    *turn += AGAIN;
    for (name, identity) in new {
        let Some(bytes) = world.place.read(&name).await? else { continue };
        let kept = format!("{}.{}", name.replace('/', " "), identity.tag.trim_matches('"'));
        let copy = world.folder.join("archive").join(kept);
        std::fs::write(&copy, &bytes)?;
        let seen = Seen { identity, sha256: sha256(&bytes), copy, export: None };
        locked(&world.archive).files.insert(name, seen);
    }
    Ok(())
}

/// Rules that must hold at every moment. Each rule is one statement, so it reads one snapshot.
const RULES: [(&str, &str, &str); 5] = [
    (
        "6",
        "a lane with more than one running export",
        "select e.consumer_id || '/' || e.dataset || ': ' || count(*)
         from cdc_export.jobs j join cdc_export.exports e on e.job = j.id
         where j.status = 'processing' and e.consumer_id is not null
         group by e.consumer_id, e.dataset having count(*) > 1",
    ),
    // The earlier export is open, or its file has no name yet.
    (
        "6",
        "an export that overtook an earlier one",
        "select e.lane || ': ' || e.lane_sequence || ' is ' || e.status || ', ' || o.lane_sequence || ' is ' || o.status
         from cdc_export.exports o
         join torture.kept e on (e.consumer_id, e.dataset) = (o.consumer_id, o.dataset) and e.lane_sequence > o.lane_sequence
         where o.published_at is null and o.status in ('open', 'completed')
           and e.status in ('processing', 'completed', 'skipped', 'failed')",
    ),
    // No client of the torture removes a file that has no name yet.
    (
        "3",
        "a committed export without its file",
        "select lane || ': ' || job from torture.kept where error_code = 'file_lost' and consumer_id is not null",
    ),
    (
        "2",
        "a watermark that isn't the last committed job's",
        "select w.consumer_id || '/' || w.dataset || ': ' || coalesce(w.last_exported_at::text, 'null') || ', '
           || coalesce(j.watermark_to::text, 'null')
         from watermarks w
         left join lateral (select watermark_to from torture.kept e
                            where e.consumer_id = w.consumer_id and e.dataset = w.dataset
                              and (e.status in ('completed', 'skipped') or e.error_code = 'file_lost')
                            order by lane_sequence desc limit 1) j on true
         where w.last_exported_at is distinct from j.watermark_to",
    ),
    // The exports of a job are claimed together and end together. A file can be lost only after the commit.
    (
        "12",
        "a job that is neither all nor nothing",
        "select j.id || ' is ' || j.status || ', ' || e.dataset || ' is ' || e.status
         from cdc_export.jobs j join cdc_export.exports e on e.job = j.id
         where not case
           when j.status in ('pending', 'processing') then e.status = 'open'
           when j.status = 'committed'
             then e.status in ('completed', 'skipped') or e.status = 'failed' and j.error_code = 'file_lost'
           when j.status = 'completed' then e.published_at is not null or e.status = 'skipped'
           when j.error_code = 'file_lost' then e.published_at is not null or e.status in ('skipped', 'failed')
           else e.status = j.status end",
    ),
];

async fn look_at_tables(world: &World, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    for (invariant, what, sql) in RULES {
        let found: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut *conn).await?;
        for broken in found {
            if invariant == "3" && broken.split_once(": ").is_some_and(|(lane, job)| world.was_removed(job, lane)) {
                continue;
            }
            world.report.red(invariant, format!("{what}: {broken}"));
        }
    }
    let unknown: HashMap<String, (Identity, String)> = {
        let archive = locked(&world.archive);
        let unknown = archive.files.iter().filter(|(_, seen)| seen.export.is_none());
        unknown.map(|(name, seen)| (name.clone(), (seen.identity.clone(), seen.sha256.clone()))).collect()
    };
    for (name, (identity, sha256)) in unknown {
        let export: Option<(uuid::Uuid, String, String, Option<String>, i64)> = sqlx::query_as(
            "select job, lane, status, sha256, bytes_written from torture.kept where output_filename = $1",
        )
        .bind(world.place.output_filename(&name))
        .fetch_optional(&mut *conn)
        .await?;
        match &export {
            Some((_, _, status, hash, size)) if status == "completed" => {
                let is_recorded = hash.as_deref() == Some(&sha256) && *size as u64 == identity.size;
                // In a bucket, two exports with the same `output_filename` have different keys.
                if !is_recorded && !locked(&world.lost).contains(&sha256) {
                    world.report.red("3", format!("{name} is not what is recorded of it: {size} bytes, {hash:?}"));
                }
            }
            // The database was restored to a moment before this file was made.
            _ if locked(&world.lost).contains(&sha256) => {}
            other => world.report.red("5", format!("{name} has its final name, and its export is {other:?}")),
        }
        if let Some(seen) = locked(&world.archive).files.get_mut(&name) {
            seen.export = Some(export.map(|(job, lane, ..)| (job, lane)).unwrap_or_default());
        }
    }
    Ok(())
}
