//! The oracle: replays the files as a consumer would and compares with what the recorder saw. Shares no code with the service.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::auditor::{Archive, identity, names};
use crate::ledger::{AD_HOC, LANES};
use crate::recorder::{self, History, Row, Version};
use crate::report::{Report, locked};
use crate::trial::World;

/// A commit's time is taken before its log is on disk, and others see it only then.
const VISIBLE_AFTER: TimeDelta = TimeDelta::seconds(2);

/// Why a job may fail here: its attempts are spent. All else is a defect, a transient error taken for a permanent one.
const SPENT: [&str; 3] = ["attempts_exhausted", "source_unavailable", "watermark_changed"];
/// What the failpoints of the first phase look like.
const INJECTED: [&str; 2] = ["storage_full", "internal"];

#[derive(Debug, sqlx::FromRow)]
struct Job {
    id: Uuid,
    /// Empty: ad hoc.
    consumer_id: String,
    /// The last key that an ad-hoc export was to have.
    up_to: Option<i64>,
    export_type: String,
    status: String,
    error_code: Option<String>,
    rows_exported: i64,
    bytes_written: i64,
    output_filename: String,
    sha256: Option<String>,
    staged_name: Option<String>,
    watermark_from: Option<DateTime<Utc>>,
    watermark_to: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

/// What the checks stand on, read once after everything came to rest.
pub(crate) struct Oracle<'w> {
    world: &'w World,
    jobs: Vec<Job>,
    pub(crate) history: History,
    versions: BTreeMap<i64, Vec<Version>>,
    table: BTreeMap<i64, Row>,
    /// When the failpoints were behind us.
    first_phase_ended: DateTime<Utc>,
}

impl Oracle<'_> {
    pub(crate) async fn new<'w>(world: &'w World, first_phase_ended: DateTime<Utc>) -> Result<Oracle<'w>> {
        let mut conn: PgConnection = world.cluster.connect().await?;
        let jobs = sqlx::query_as(
            "select id, coalesce(consumer_id, '') as consumer_id, (selection->'filter'->0->>'value')::bigint as up_to, export_type, status, error_code, rows_exported, bytes_written, output_filename,
               sha256, staged_name, watermark_from, watermark_to, finished_at
             from exports order by consumer_id, lane_seq",
        );
        Ok(Oracle {
            world,
            jobs: jobs.fetch_all(&mut conn).await?,
            history: History::read(&mut conn).await?,
            versions: recorder::versions(&mut conn).await?,
            table: recorder::table(&mut conn).await?,
            first_phase_ended,
        })
    }

    pub(crate) fn count(&self, status: &str) -> usize {
        self.jobs.iter().filter(|job| job.status == status).count()
    }

    /// Every check. Returns how many replays were compared with the table's history.
    pub(crate) fn check(&self) -> Result<usize> {
        self.check_promises();
        self.check_endings();
        self.check_steps();
        self.check_files()?;
        let mut replays = 0;
        for lane in LANES {
            self.check_chain(lane);
            match self.replay(lane) {
                Ok(compared) => replays += compared,
                Err(error) => self.report().red("1", format!("{lane}: {error:#}")),
            }
        }
        for job in self.completed().filter(|job| job.consumer_id == AD_HOC) {
            match self.compare_ad_hoc(job) {
                Ok(()) => replays += 1,
                Err(error) => self.report().red("1", format!("{}: {error:#}", job.output_filename)),
            }
        }
        Ok(replays)
    }

    fn report(&self) -> &Report {
        &self.world.report
    }

    fn completed(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(|job| job.status == "completed")
    }

    /// 7 and 8: every 202 is a job that has ended as its clients were told.
    fn check_promises(&self) {
        let jobs: BTreeMap<String, &Job> = self.jobs.iter().map(|job| (job.id.to_string(), job)).collect();
        for (id, promise) in &locked(&self.world.ledger).promises {
            let Some(job) = jobs.get(id) else {
                self.report().red("8", format!("job {id} of {} was accepted and is gone", promise.lane));
                continue;
            };
            if promise.cancel_accepted && job.status != "cancelled" {
                self.report().red("7", format!("a cancel of {id} was accepted, and it is {}", job.status));
            }
            if let Some((told, _)) = &promise.ended
                && told["status"] != job.status.as_str()
            {
                self.report().red("7", format!("{told} is {} in the end", job.status));
            }
        }
    }

    /// 9: everything has ended, and nothing failed that could have been done.
    fn check_endings(&self) {
        for job in &self.jobs {
            let Job { id, status, error_code, finished_at, .. } = job;
            let code = error_code.as_deref().unwrap_or_default();
            match status.as_str() {
                "completed" | "cancelled" => {}
                "failed" if SPENT.contains(&code) => {}
                "failed" if INJECTED.contains(&code) && finished_at.is_some_and(|at| at < self.first_phase_ended) => {}
                "failed" => self.report().red("9", format!("job {id} of {} failed: {code}", job.consumer_id)),
                _ => self.report().red("9", format!("job {id} of {} is {status} in the end", job.consumer_id)),
            }
        }
    }

    /// 4, 6 and 7: by the recorder, every step of every job.
    fn check_steps(&self) {
        let mut running = BTreeMap::<&str, Uuid>::new();
        let mut open = BTreeMap::<&str, BTreeSet<i64>>::new();
        for step in &self.history.steps {
            let (Some(lane), Some(seq)) = (step.lane.as_deref(), step.lane_seq) else { continue };
            let was = step.was.as_deref().unwrap_or("nothing");
            let legal = matches!(
                (was, step.became.as_str()),
                ("nothing", "pending")
                    | ("pending", "processing" | "cancelled")
                    | ("processing", "pending" | "completed" | "failed" | "cancelled")
            );
            if !legal {
                self.report().red("7", format!("job {} of {lane} went from {was} to {}", step.job, step.became));
            }
            let open = open.entry(lane).or_default();
            match step.became.as_str() {
                "pending" => drop(open.insert(seq)),
                "processing" => {
                    if open.first().is_some_and(|first| *first < seq) {
                        self.report().red("6", format!("job {seq} of {lane} overtook an earlier one"));
                    }
                    if let Some(other) = running.insert(lane, step.job) {
                        self.report().red("6", format!("{} and {other} of {lane} ran at once", step.job));
                    }
                }
                _ => drop(open.remove(&seq)),
            }
            if was == "processing" {
                running.remove(lane);
            }
            if step.became == "completed" {
                // The hidden name carries the token of the attempt that wrote the file.
                let staged = step.staged.clone().unwrap_or_default();
                if step.token_was.is_none_or(|token| !staged.contains(&token.to_string())) {
                    let held = step.token_was;
                    self.report().red("4", format!("{} was completed with {staged} while {held:?} held it", step.job));
                }
            }
        }
    }

    /// 3 and 10: a completed job has its file whole, and there are no others.
    fn check_files(&self) -> Result<()> {
        let (finals, hidden) = names(&self.world.output)?;
        for name in hidden {
            self.report().red("10", format!("{name} was left over"));
        }
        let archive = locked(&self.world.archive);
        let ledger = locked(&self.world.ledger);
        for job in self.completed() {
            let Some(seen) = archive.files.get(&job.output_filename) else {
                self.report().red("3", format!("{} is completed, and {} was never seen", job.id, job.output_filename));
                continue;
            };
            if job.sha256.as_deref() != Some(&seen.sha256) || job.bytes_written as u64 != seen.identity.size {
                self.report().red("3", format!("{} is not what {} has recorded", job.output_filename, job.id));
            }
            let removal_asked = ledger.promises.get(&job.id.to_string()).is_some_and(|promise| promise.removal_asked);
            match identity(&self.world.output.join(&job.output_filename)) {
                Some(now) if now == seen.identity => {}
                None if removal_asked => {}
                other => {
                    let name = &job.output_filename;
                    self.report().red("3", format!("{name} was {:?} and is {other:?} in the end", seen.identity));
                }
            }
        }
        let owned: HashSet<&str> = self.completed().map(|job| job.output_filename.as_str()).collect();
        for name in finals.iter().chain(archive.files.keys()).filter(|name| !owned.contains(name.as_str())) {
            self.report().red("10", format!("{name} belongs to no completed job"));
        }
        Ok(())
    }

    /// 2: each job begins where the completed one before it ended.
    fn check_chain(&self, lane: &str) {
        let mut last = None;
        for job in self.completed().filter(|job| job.consumer_id == lane) {
            if job.watermark_from != last || job.watermark_to < last {
                let Job { id, watermark_from, watermark_to, .. } = job;
                let line = format!("{lane}: {id} goes from {watermark_from:?} to {watermark_to:?} after {last:?}");
                self.report().red("2", line);
            }
            last = job.watermark_to;
        }
    }

    /// 1: after each completed export the replica is the table as of a moment between the attempt's claim and its commit; after
    /// the last one, a delta that began when nobody wrote any more, it is the table.
    fn replay(&self, lane: &str) -> Result<usize> {
        let archive = locked(&self.world.archive);
        let mut replica = BTreeMap::<i64, Row>::new();
        let mut sent = HashSet::<(i64, Row)>::new();
        let mut compared = 0;
        let mut wrong = 0;
        for job in self.completed().filter(|job| job.consumer_id == lane) {
            let Some(file) = File::read(&archive, job)? else { continue };
            if file.rows.len() as i64 != job.rows_exported {
                let (found, recorded) = (file.rows.len(), job.rows_exported);
                self.report().red("3", format!("{}: {found} rows, {recorded} recorded", job.output_filename));
            }
            for again in file.apply(&mut replica, &mut sent) {
                self.report().red("1", format!("{}: sent again unchanged: {again}", job.output_filename));
            }
            let (from, to) = self.window(job).context("a completed job has an attempt that completed it")?;
            for (id, versions) in &self.versions {
                let live_only = job.export_type == "incremental";
                if let Err(why) = compare(replica.get(id), versions, from, to, live_only) {
                    wrong += 1;
                    // One lost row is wrong in every export until it changes again.
                    if wrong <= 5 {
                        let name = &job.output_filename;
                        self.report().red("1", format!("after {name}, row {id} is {:?}: {why}", replica.get(id)));
                    }
                }
            }
            compared += 1;
        }
        let different = |id: &&i64| replica.get(id) != self.table.get(id);
        let keys: BTreeSet<&i64> = replica.keys().chain(self.table.keys()).collect();
        let different: Vec<_> = keys.into_iter().filter(different).collect();
        if !different.is_empty() {
            let few = &different[..different.len().min(5)];
            self.report().red("1", format!("{lane}: {} rows are not the table's in the end: {few:?}", different.len()));
        }
        Ok(compared)
    }

    /// 1, of an export for nobody: its rows are the table's, up to its key, at a moment between the attempt's claim and its commit.
    fn compare_ad_hoc(&self, job: &Job) -> Result<()> {
        let archive = locked(&self.world.archive);
        let Some(file) = File::read(&archive, job)? else { return Ok(()) };
        ensure!(
            file.rows.len() as i64 == job.rows_exported,
            "{} rows, {} recorded",
            file.rows.len(),
            job.rows_exported
        );
        let mut rows = BTreeMap::new();
        file.apply(&mut rows, &mut HashSet::new());
        let (from, to) = self.window(job).context("a completed job has an attempt that completed it")?;
        let is_asked_for = |id: i64| job.up_to.is_none_or(|last| id <= last);
        if let Some(id) = rows.keys().find(|id| !is_asked_for(**id)) {
            bail!("row {id} was not asked for");
        }
        for (id, versions) in self.versions.iter().filter(|(id, _)| is_asked_for(**id)) {
            if let Err(why) = compare(rows.get(id), versions, from, to, false) {
                bail!("row {id} is {:?}: {why}", rows.get(id));
            }
        }
        Ok(())
    }

    /// From the claim of the attempt that completed a job to its commit.
    fn window(&self, job: &Job) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let staged = job.staged_name.as_deref()?;
        let written = self.history.attempts.iter().find(|(token, _)| staged.contains(&token.to_string()))?;
        let committed = self.history.steps.iter().find(|step| step.job == job.id && step.became == "completed")?;
        Some((written.1.claimed, committed.at))
    }
}

/// Whether a replica's row may be this, if the table was read at some moment between `from` and `to`.
fn compare(
    row: Option<&Row>,
    versions: &[Version],
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    live_only: bool,
) -> Result<(), String> {
    let first = Version { row: None, committed: DateTime::<Utc>::MIN_UTC };
    let all: Vec<&Version> = std::iter::once(&first).chain(versions).collect();
    let mut possible = Vec::new();
    for (at, version) in all.iter().enumerate() {
        let overwritten = all.get(at + 1).map(|next| next.committed);
        if version.committed <= to && overwritten.is_none_or(|when| when + VISIBLE_AFTER >= from) {
            possible.push(version.row.as_ref());
        }
    }
    // An incremental export sends no deletions: the row stays until a delta comes.
    if possible.contains(&row) || live_only && possible.contains(&None) {
        return Ok(());
    }
    Err(format!("between {from} and {to} it was one of {possible:?}"))
}

/// An export's file, read by a reader that isn't the service's.
struct File {
    is_full: bool,
    is_delta: bool,
    rows: Vec<csv::StringRecord>,
}

const COLUMNS: [&str; 6] = ["id", "name", "email", "created_at", "updated_at", "is_deleted"];

impl File {
    fn read(archive: &Archive, job: &Job) -> Result<Option<File>> {
        // That it is missing was said before.
        let Some(seen) = archive.files.get(&job.output_filename) else { return Ok(None) };
        File::parse(&seen.copy, &job.export_type).with_context(|| job.output_filename.clone()).map(Some)
    }

    fn parse(path: &Path, export_type: &str) -> Result<File> {
        let is_delta = export_type == "delta";
        let mut reader = csv::Reader::from_path(path)?;
        let expected: Vec<_> = is_delta.then_some("operation").into_iter().chain(COLUMNS).collect();
        ensure!(reader.headers()?.iter().eq(expected.iter().copied()), "its header is {:?}", reader.headers()?);
        Ok(File { is_full: export_type == "full", is_delta, rows: reader.records().collect::<Result<_, _>>()? })
    }

    /// Replays it. Returns the live rows that a change file sent although they had been sent just so before.
    fn apply(&self, replica: &mut BTreeMap<i64, Row>, sent: &mut HashSet<(i64, Row)>) -> Vec<String> {
        if self.is_full {
            replica.clear();
        }
        let mut again = Vec::new();
        for record in &self.rows {
            let mut fields = record.iter();
            let operation = if self.is_delta { fields.next().unwrap_or_default() } else { "" };
            let fields: Vec<&str> = fields.collect();
            let id: i64 = fields[0].parse().unwrap_or(i64::MIN);
            let text = |at: usize| fields[at].to_owned();
            let row = Row { name: text(1), email: text(2), created_at: text(3), updated_at: text(4) };
            if operation == "DELETE" {
                replica.remove(&id);
                continue;
            }
            if !sent.insert((id, row.clone())) && !self.is_full {
                again.push(format!("{id} {row:?}"));
            }
            replica.insert(id, row);
        }
        again
    }
}
