//! The oracle compares everything that happened with what was promised. It shares no code with the service.
//!
//! The oracle judges an era: all that the database says from the era's beginning until the next restore or the end of
//! the run. Consumers keep over the eras what they received, and so do their replicas here.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::auditor::Archive;
use crate::era::{Delivered, Era, Export, ExportId, FILE_LOST, OTHER_FAILED};
use crate::lanes::{AD_HOC, LANES, Lane};
use crate::log_bound::LOG_LOST;
use crate::recorder::{self, Attempts, Since, Snapshot, Step, Versions};
use crate::replay::{Replica, Window};
use crate::report::locked;
use crate::trial::World;
use crate::{ledger, loader, manifests};

/// Error codes of exports whose job has spent its attempts. Any other code takes a transient error for a permanent one.
const SPENT: [&str; 4] = ["attempts_exhausted", "source_unavailable", "watermark_changed", "gave_way"];
/// Error codes that the failpoints of the first phase cause.
const INJECTED: [&str; 3] = ["storage_full", "storage_unavailable", "internal"];

#[derive(Default)]
struct Consumer {
    replica: Replica,
    had: HashSet<Delivered>,
    last: Option<Delivered>,
    /// The last committed export, whether or not its file got its name.
    committed: Option<Delivered>,
    /// The consumer received an export that the database doesn't know any more, and no full export since.
    astray: bool,
    /// The database doesn't know the last committed export any more. The consumer may have received that export.
    doubtful: bool,
    /// The consumer's loader goes on from the export before the last one, since it didn't receive the last one.
    left_behind: bool,
    /// For a loader: the number of its loads that were replayed.
    taken: usize,
    wrong: usize,
    /// Number of rows that are wrong only at the moment of the export's job.
    beside: usize,
}

type States = HashMap<ExportId, String>;

#[derive(Default)]
pub(crate) struct Oracle {
    consumers: BTreeMap<String, Consumer>,
    ad_hoc: HashSet<Delivered>,
    /// The last state of each export of any era.
    ended: States,
    pub(crate) attempts: Attempts,
    pub(crate) replays: usize,
    pub(crate) given_up: HashSet<ExportId>,
    /// The last state of each job of any era whose request had `datasets`.
    jobs_of_datasets: HashMap<Uuid, String>,
    first_phase_ended: Option<DateTime<Utc>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The end of the run: all processes are at rest, and nobody writes.
    OfAll,
    /// The end of an era, before the database is restored. Jobs may be open.
    OfEra,
}

struct Judged<'a> {
    world: &'a World,
    era: &'a Era,
}

impl Oracle {
    pub(crate) fn first_phase_ended(&mut self) {
        self.first_phase_ended = Some(Utc::now());
    }

    pub(crate) fn count(&self, status: &str) -> usize {
        self.ended.values().filter(|ended| *ended == status).count()
    }

    pub(crate) fn count_jobs_of_datasets(&self, state: &str) -> usize {
        self.jobs_of_datasets.values().filter(|ended| *ended == state).count()
    }

    /// Reads the era and counts it in, without judging it.
    pub(crate) async fn take_in(&mut self, conn: &mut PgConnection) -> Result<()> {
        let era = Era::read(conn).await?;
        self.count_in(&era);
        Ok(())
    }

    /// Adapts to a restored database, which has these exports as completed.
    pub(crate) fn put_back(&mut self, completed: &HashSet<Delivered>) {
        for consumer in self.consumers.values_mut() {
            let is_lost = |given: &Option<Delivered>| given.as_ref().is_some_and(|given| !completed.contains(given));
            (consumer.astray, consumer.doubtful) = (is_lost(&consumer.last), is_lost(&consumer.committed));
        }
    }

    fn count_in(&mut self, era: &Era) {
        self.ended.extend(era.exports.iter().map(|export| (export.id(), export.status.clone())));
        self.given_up.extend(era.given_up.iter().cloned());
        let jobs = era.jobs().into_iter().filter(|(_, job)| job.is_of_datasets);
        self.jobs_of_datasets.extend(jobs.filter_map(|(id, job)| Some((id, (*job.states.first()?).to_owned()))));
        for (token, attempt) in &era.history.attempts {
            let known = self.attempts.entry(*token).or_insert_with(|| attempt.clone());
            if known.ended.is_none() {
                known.ended.clone_from(&attempt.ended);
            }
        }
    }

    /// Runs every check of an era. The database must be in the last state of that era.
    pub(crate) async fn judge(&mut self, world: &World, conn: &mut PgConnection, end: End) -> Result<()> {
        let era = &Era::read(conn).await?;
        let before = self.ended.clone();
        self.count_in(era);
        let judged = Judged { world, era };
        judged.check_promises();
        judged.check_endings(self.first_phase_ended, end);
        judged.check_steps();
        judged.check_skips();
        judged.check_jobs();
        if end == End::OfAll {
            judged.check_files().await?;
            manifests::check(world, era).await?;
        }
        for lane in &LANES {
            judged.check_chain(lane.name);
            judged.check_numbers(lane.name);
            let consumer = self.consumers.entry(lane.name.to_owned()).or_default();
            match judged.replay(lane, consumer, &before, end) {
                Ok(compared) => self.replays += compared,
                Err(error) => world.report.red("1", format!("{}: {error:#}", lane.name)),
            }
        }
        for (lane, which) in loader::all() {
            let consumer = self.consumers.entry(format!("{}, loader {which}", lane.name)).or_default();
            match judged.reload(lane, which, consumer, end) {
                Ok(compared) => self.replays += compared,
                Err(error) => world.report.red("1", format!("{}, loader {which}: {error:#}", lane.name)),
            }
        }
        for export in era.completed().filter(|it| it.lane == AD_HOC && self.ad_hoc.insert(it.delivered())) {
            match judged.compare_ad_hoc(export) {
                Ok(()) => self.replays += 1,
                Err(error) => world.report.red("1", format!("{}: {error:#}", export.output_filename)),
            }
        }
        if end == End::OfEra {
            locked(&world.lost).extend(era.completed().filter_map(|export| export.sha256.clone()));
        }
        Ok(())
    }
}

impl Judged<'_> {
    fn red(&self, invariant: &'static str, what: String) {
        self.world.report.red(invariant, what);
    }

    /// 7 and 8: Checks that every accepted job (202) has ended as its clients were told.
    fn check_promises(&self) {
        let exports = self.era.exports.iter().map(|export| ((export.job.to_string(), export.lane.as_str()), export));
        let exports: BTreeMap<(String, &str), &Export> = exports.collect();
        let ledger = locked(&self.world.ledger);
        let promised =
            ledger.promises.iter().flat_map(|(id, promise)| promise.lanes.iter().map(move |lane| (id, lane, promise)));
        for (id, lane, promise) in promised {
            let Some(export) = exports.get(&(id.clone(), *lane)) else {
                self.red("8", format!("job {id} of {lane} was accepted and is gone"));
                continue;
            };
            if promise.gone.contains(lane) && !export.removed {
                self.red("8", format!("there was no {id} of {lane}, which is {} in the end", export.status));
            }
            if promise.cancel_accepted && ["completed", "skipped", "failed"].contains(&export.status.as_str()) {
                self.red("7", format!("a cancel of {id} of {lane} was accepted, and it is {}", export.status));
            }
            let Some(told) = promise.told(lane) else { continue };
            if ledger::status(&told) != export.status {
                self.red("7", format!("{told} is {} in the end", export.status));
            }
            // An answer about another file is from before a restore of the database.
            let is_of_this = export.published && told["sha256"].as_str() == export.sha256.as_deref();
            if is_of_this && told["location"].as_str() != export.location.as_deref() {
                self.red("7", format!("{told} is at {:?} in the end", export.location));
            }
        }
    }

    /// 9: Checks that everything has ended, and that nothing failed that could have been done.
    fn check_endings(&self, first_phase_ended: Option<DateTime<Utc>>, end: End) {
        let failed = self.era.history.steps.iter().filter(|step| step.became == "failed");
        let in_first_phase = |step: &&Step| first_phase_ended.is_none_or(|ended| step.at < ended);
        let in_first_phase: HashSet<ExportId> = failed.filter(in_first_phase).map(Step::export).collect();
        for export in &self.era.exports {
            let Export { job, lane, status, error_code, .. } = export;
            let code = error_code.as_deref().unwrap_or_default();
            match status.as_str() {
                "completed" | "skipped" | "cancelled" => {}
                "failed" if SPENT.contains(&code) => {}
                // `replay` checks the reason of an export in a lane. An export without a lane may have run already.
                "failed" if code == "full_export_needed" && (lane != AD_HOC || self.world.was_turned_over()) => {}
                "failed" if INJECTED.contains(&code) && in_first_phase.contains(&export.id()) => {}
                // `check_jobs` looks for the export that failed by itself.
                "failed" if code == OTHER_FAILED && export.is_of_datasets => {}
                "failed" if code == FILE_LOST && self.world.was_removed(&job.to_string(), lane) => {}
                "failed" => self.red("9", format!("{job} of {lane} failed: {code}, {:?}", export.continuity)),
                _ if end == End::OfEra => {}
                _ => self.red("9", format!("job {job} of {lane} is {status} in the end")),
            }
        }
    }

    /// 4, 6 and 7: Checks every step of every export, as the recorder saw it.
    fn check_steps(&self) {
        let mut running = BTreeMap::<&str, Uuid>::new();
        let mut open = BTreeMap::<&str, BTreeMap<Uuid, i64>>::new();
        for step in &self.era.history.steps {
            let (lane, Some(seq)) = (step.lane.as_str(), step.lane_sequence) else { continue };
            let was = step.was.as_deref().unwrap_or("nothing");
            let legal = matches!(
                (was, step.became.as_str()),
                ("nothing", "pending")
                    | ("pending", "processing" | "cancelled")
                    | ("processing", "pending" | "completed" | "skipped" | "failed" | "cancelled")
                    | ("completed", "published")
                    | ("pending" | "processing", "moved")
            );
            let is_lost = (was, step.code.as_deref()) == ("completed", Some(FILE_LOST))
                && self.world.was_removed(&step.job.to_string(), lane);
            if !legal && !is_lost {
                self.red("7", format!("job {} of {lane} went from {was} to {}", step.job, step.became));
            }
            // A committed export counts as open until its file has its name.
            let open = open.entry(lane).or_default();
            match step.became.as_str() {
                "pending" | "moved" => drop(open.insert(step.job, seq)),
                "processing" | "published" => {
                    if let Some(first) = open.values().min().filter(|first| **first < seq) {
                        let became = &step.became;
                        self.red("6", format!("job {seq} of {lane} is {became}, and {first} before it isn't out yet"));
                    }
                    if step.became == "published" {
                        open.remove(&step.job);
                    } else if let Some(other) = running.insert(lane, step.job) {
                        self.red("6", format!("{} and {other} of {lane} ran at once", step.job));
                    }
                }
                "completed" => {}
                _ => drop(open.remove(&step.job)),
            }
            if was == "processing" && step.became != "moved" {
                running.remove(lane);
            }
            if step.became == "completed" {
                // The hidden name carries the token of the attempt that wrote the file.
                let staged = step.staged.clone().unwrap_or_default();
                if step.token_was.is_none_or(|token| !staged.contains(&token.to_string())) {
                    let held = step.token_was;
                    self.red("4", format!("{} was completed with {staged} while {held:?} held it", step.job));
                }
            }
        }
    }

    /// 3, 4 and 8: Checks that a skipped export has no trace of a file, was to be skipped, and was skipped by its
    /// attempt. Only skipped exports may be gone, after a later export of the lane was skipped too.
    fn check_skips(&self) {
        let mut last = HashMap::<&str, i64>::new();
        for export in self.era.exports.iter().filter(|export| export.status == "skipped") {
            let Export { job, lane, lane_sequence, .. } = export;
            let last = last.entry(lane).or_insert(0);
            *last = (*last).max(lane_sequence.unwrap_or_default());
            let has_file = export.published
                || export.number.is_some()
                || export.location.is_some()
                || export.rows_exported + export.bytes_written != 0
                || [&export.sha256, &export.digest, &export.staged_name].into_iter().any(Option::is_some);
            if has_file || export.watermark_from != export.watermark_to {
                self.red("3", format!("{job} of {lane} was skipped, and it is {export:?}"));
            }
            let may_be = export.skip_empty == Some(true) && export.export_type != "full" && export.continuity.is_none();
            if !may_be || lane == AD_HOC {
                self.red("3", format!("{job} of {lane} was not to be skipped: {export:?}"));
            }
            if export.skipped_by.is_none() {
                self.red("4", format!("{job} of {lane} was skipped while nobody held it"));
            }
        }
        for export in self.era.exports.iter().filter(|export| export.removed) {
            if export.status != "skipped" || last.get(export.lane.as_str()).copied() <= export.lane_sequence {
                self.red("8", format!("job {} of {} was accepted and is gone", export.job, export.lane));
            }
        }
    }

    /// 12: Checks that all exports of a job were committed in one transaction and as of one snapshot, or none of them.
    /// In that case, all of them ended in one way. This also holds while the job is open.
    fn check_jobs(&self) {
        for (id, job) in self.era.jobs() {
            if job.states.len() > 1 || job.commits.len() > 1 {
                let exports = job.exports.iter().map(|export| {
                    let Export { lane, status, error_code, .. } = export;
                    format!("{lane}: {status}, {error_code:?}, {:?}", self.era.commits.get(&export.id()))
                });
                let exports: Vec<_> = exports.collect();
                self.red("12", format!("the job {id} is neither all nor nothing: {exports:?}"));
            }
            if job.snapshots.len() > 1 {
                self.red("12", format!("the positions of the job {id} are of several moments: {:?}", job.snapshots));
            }
            let has_no_cause = job.exports.iter().all(|export| export.error_code.as_deref() == Some(OTHER_FAILED));
            if job.states.contains("failed") && has_no_cause {
                self.red("9", format!("the job {id} failed, and none of its exports did"));
            }
        }
    }

    /// Returns the snapshot of a job of several datasets. Each of its exports must equal the table at that snapshot.
    fn moment(&self, export: &Export) -> Result<Option<Snapshot>> {
        let of_job = self.era.exports.iter().filter(|other| export.is_of_datasets && other.job == export.job);
        let mut moments = of_job.filter_map(|other| self.era.commits.get(&other.id())?.1.clone());
        moments.next().map(Snapshot::try_from).transpose()
    }

    /// 3 and 10: Checks that each completed export has its whole file, and that there are no other files.
    async fn check_files(&self) -> Result<()> {
        let place = &self.world.place;
        for left in place.leftovers(|job| self.is_forgotten(job)).await? {
            self.red("10", format!("{left} was left over"));
        }
        let listing = place.list().await?;
        let archive = locked(&self.world.archive);
        for export in self.era.completed() {
            let (due, name) = (place.due_name(export)?, place.name(export).unwrap_or_default());
            if name != due {
                self.red("api", format!("the file of {} is called {name}, and not {due}", export.job));
            }
            let Some(seen) = archive.files.get(&name) else {
                self.red("3", format!("{} is completed, and {name} was never seen", export.job));
                continue;
            };
            if export.sha256.as_deref() != Some(&seen.sha256) || export.bytes_written as u64 != seen.identity.size {
                self.red("3", format!("{name} is not what {} has recorded", export.job));
            }
            match listing.identity(&name) {
                Some(now) if now == seen.identity => {}
                None if self.world.was_removed(&export.job.to_string(), &export.lane) => {}
                other => {
                    self.red("3", format!("{name} was {:?} and is {other:?} in the end", seen.identity));
                }
            }
        }
        let lost = locked(&self.world.lost);
        let was_once = |name: &str| archive.files.get(name).is_some_and(|seen| lost.contains(&seen.sha256));
        let owned: HashSet<String> = self.era.completed().filter_map(|export| place.name(export)).collect();
        let seen = listing.finals.iter().chain(archive.files.keys());
        for name in seen.filter(|name| !owned.contains(*name) && !was_once(name)) {
            self.red("10", format!("{name} belongs to no completed export"));
        }
        Ok(())
    }

    /// 2: Checks that each export begins where the last committed export ended.
    fn check_chain(&self, lane: &str) {
        let mut last = None;
        for export in self.era.of_lane(lane).filter(|export| export.has_committed()) {
            if export.watermark_from != last || export.watermark_to < last {
                let Export { job, watermark_from, watermark_to, .. } = export;
                self.red("2", format!("{lane}: {job} goes from {watermark_from:?} to {watermark_to:?} after {last:?}"));
            }
            last = export.watermark_to;
        }
    }

    /// 6: Checks that a lane's published exports are numbered in order. If the database was never restored, the numbers
    /// begin at 1 and have no gaps.
    fn check_numbers(&self, lane: &str) {
        let mut last = 0;
        for export in self.era.of_lane(lane) {
            let Export { job, published, number, .. } = export;
            let follows = match (published, number) {
                (true, Some(number)) if self.world.era() == 0 => *number == last + 1,
                (true, Some(number)) => *number > last,
                (true, None) => false,
                (false, number) => number.is_none(),
            };
            if !follows {
                self.red("6", format!("{lane}: {job} has number {number:?} after {last}, published: {published}"));
            }
            last = number.unwrap_or(last);
        }
    }

    /// 1: Checks that the replica after each export is the table as of a moment between the attempt's claim and its
    /// commit. After the last delta, which began when nobody wrote any more, the replica must be the table.
    ///
    /// Checks each skipped export: the replica must be the table without another file.
    ///
    /// An export of changes may be refused only for a reason. The database doesn't know what the consumer has, the
    /// owner made certain moves, or the change log may have exceeded its bound. A full export may be refused only if it
    /// waited in a copy, and may have been done since.
    fn replay(&self, lane: &Lane, consumer: &mut Consumer, before: &States, end: End) -> Result<usize> {
        let mut compared = 0;
        let mut since = Since::default();
        // A file was lost, and no full export came after it.
        let mut has_lost_a_file = false;
        for export in self.era.of_lane(lane.name) {
            let Export { job, export_type, continuity, .. } = export;
            let about = format!("{export_type} {job} of {}", lane.name);
            let is_as_before = before.get(&export.id()) == Some(&export.status);
            match export.status.as_str() {
                "failed" if export.error_code.as_deref() == Some("full_export_needed") => {
                    if is_as_before {
                        continue;
                    }
                    let is_refusal = |step: &&Step| step.export() == export.id() && step.became == "failed";
                    let refused = self.era.history.steps.iter().rfind(is_refusal);
                    let has_moved = refused.is_some_and(|step| {
                        recorder::has_moved(&self.era.moves, lane.dataset, export_type, &since, &step.snapshot)
                    });
                    if continuity.as_deref().is_some_and(|word| LOG_LOST.contains(&word)) {
                        if !self.era.given_up.contains(&export.id()) {
                            let line =
                                format!("{about} was refused, {continuity:?}, and the log was not over its bound");
                            self.red("1", line);
                        }
                        continue;
                    }
                    // The lane has no file that shows that its first export wasn't done before a failover.
                    let unwitnessed = consumer.last.is_none() && self.world.was_turned_over();
                    if !has_moved && !consumer.astray && !consumer.doubtful && !has_lost_a_file && !unwitnessed {
                        self.red("1", format!("{about} was refused for nothing: {continuity:?}"));
                    }
                }
                "failed" if export.has_lost_its_file() => has_lost_a_file = true,
                "completed" | "skipped" => {
                    since.any = self.era.window(export).map(|window| window.from);
                    if export_type != "incremental" {
                        since.deletions = since.any.clone();
                    }
                    let (is_full, is_skipped) = (export_type == "full", export.status == "skipped");
                    has_lost_a_file &= !is_full;
                    let is_new = !consumer.had.contains(&export.delivered());
                    if is_new && consumer.astray && !is_full {
                        // The loader that asked didn't receive the lost export, and goes on from the one before.
                        // `reload` compares the loaders' rows. This replica has the lost export, and stays unchanged
                        // until a full export.
                        if export.after().is_some_and(|after| Some(&after) != consumer.last.as_ref()) {
                            consumer.left_behind = true;
                            continue;
                        }
                        self.red("1", format!("{about} goes on from a lost one, {:?}", consumer.last));
                    }
                    if is_new && is_full {
                        consumer.left_behind = false;
                        (consumer.astray, consumer.doubtful) = (false, false);
                    }
                    if is_skipped {
                        if consumer.had.insert(export.delivered()) && !consumer.left_behind {
                            self.compare(export, consumer, &BTreeSet::new())?;
                            compared += 1;
                        }
                        continue;
                    }
                    // An export from before a restore says nothing about later commits, which were lost.
                    if !is_as_before {
                        consumer.committed = Some(export.delivered());
                    }
                    if export.published && consumer.had.insert(export.delivered()) {
                        compared += usize::from(self.load(export, consumer)?);
                        consumer.last = Some(export.delivered());
                    }
                }
                _ => {}
            }
        }
        if !consumer.left_behind {
            self.compare_with_table(lane, consumer, end);
        }
        Ok(compared)
    }

    /// 1: Replays what a loader loaded, in the order of loading, whatever the loader didn't receive.
    fn reload(&self, lane: &Lane, which: usize, consumer: &mut Consumer, end: End) -> Result<usize> {
        let recorded = locked(&self.world.loaded);
        let loaded = recorded.get(&(lane.name, which)).map_or(&[][..], Vec::as_slice);
        let fresh = &loaded[consumer.taken..];
        for delivered in fresh {
            let export = self.era.of_lane(lane.name).find(|export| export.delivered() == *delivered);
            let export = export.with_context(|| format!("it loaded {delivered:?}, which nobody made"))?;
            self.load(export, consumer)?;
            consumer.taken += 1;
        }
        self.compare_with_table(lane, consumer, end);
        Ok(fresh.len())
    }

    fn compare_with_table(&self, lane: &Lane, consumer: &Consumer, end: End) {
        let different = consumer.replica.differences(&self.era.tables[lane.dataset]);
        if end == End::OfAll && !different.is_empty() {
            let (many, few) = (different.len(), &different[..different.len().min(5)]);
            self.red("1", format!("{}: {many} rows are not the table's in the end: {few:?}", lane.name));
        }
    }

    /// Loads one more export and compares. Returns false if nobody saw its file, which is reported elsewhere.
    fn load(&self, export: &Export, consumer: &mut Consumer) -> Result<bool> {
        let archive = locked(&self.world.archive);
        let Some(file) = self.file(&archive, export) else { return Ok(false) };
        let name = &export.output_filename;
        let nothing = Versions::new();
        let versions = self.era.versions.get(&export.dataset).unwrap_or(&nothing);
        let (wrong, brought) = consumer.replica.load(&file, export, versions).with_context(|| name.clone())?;
        for what in wrong {
            self.red("1", format!("{name}: {what}"));
        }
        self.compare(export, consumer, &brought)?;
        Ok(true)
    }

    /// 1: Compares with the table that the export saw. 12: Compares with the table at the moment of the export's job.
    fn compare(&self, export: &Export, consumer: &mut Consumer, brought: &BTreeSet<i64>) -> Result<()> {
        let nothing = Versions::new();
        let versions = self.era.versions.get(&export.dataset).unwrap_or(&nothing);
        let window = self.era.window(export).context("the export has an attempt that completed or skipped it")?;
        let live_only = export.export_type == "incremental";
        let wrong = consumer.replica.compare(versions, &window, brought, live_only);
        if let Some(moment) = self.moment(export)?.filter(|_| wrong.is_empty()) {
            let moment = Window { from: moment.clone(), to: moment };
            for beside in consumer.replica.compare(versions, &moment, brought, live_only) {
                consumer.beside += 1;
                if consumer.beside <= 5 {
                    let Export { output_filename, job, .. } = export;
                    let line = format!("after {output_filename}, not of the moment of the job {job}");
                    self.red("12", format!("{line}: {beside}"));
                }
            }
        }
        self.tell_wrong(export, consumer, wrong);
        Ok(())
    }

    fn tell_wrong(&self, export: &Export, consumer: &mut Consumer, wrong: Vec<String>) {
        let Export { output_filename, status, lane_sequence, .. } = export;
        for wrong in wrong {
            consumer.wrong += 1;
            // One lost row stays wrong in every export until the row changes again.
            if consumer.wrong <= 5 {
                let line = format!("after {output_filename} ({status}, lane_sequence {lane_sequence:?}), {wrong}");
                self.red("1", line);
            }
        }
    }

    /// 1: Checks that an ad-hoc export has the table's rows up to its key, as of a moment from its claim to its commit.
    fn compare_ad_hoc(&self, export: &Export) -> Result<()> {
        let archive = locked(&self.world.archive);
        let Some(file) = self.file(&archive, export) else { return Ok(()) };
        let is_asked_for = |id: i64| export.up_to.is_none_or(|last| id <= last);
        let window = self.era.window(export).context("a completed export has an attempt that completed it")?;
        let versions = self.era.versions.get(&export.dataset).into_iter().flatten();
        let versions: Versions =
            versions.filter(|(id, _)| is_asked_for(**id)).map(|(id, versions)| (*id, versions.clone())).collect();
        let mut replica = Replica::default();
        let (mut wrong, brought) = replica.load(&file, export, &versions)?;
        wrong.extend(brought.iter().filter(|id| !is_asked_for(**id)).map(|id| format!("row {id} was not asked for")));
        wrong.extend(replica.compare(&versions, &window, &brought, false));
        for what in wrong.iter().take(5) {
            self.red("1", format!("{}: {what}", export.output_filename));
        }
        Ok(())
    }

    fn file(&self, archive: &Archive, export: &Export) -> Option<std::path::PathBuf> {
        archive.files.get(&self.world.place.name(export)?).map(|seen| seen.copy.clone())
    }

    /// Returns true if the database knew the job only before a restore. The leftovers of such a job stay for an hour.
    fn is_forgotten(&self, job: &str) -> bool {
        self.world.was_turned_over() && !self.era.exports.iter().any(|known| known.job.to_string() == job)
    }
}
