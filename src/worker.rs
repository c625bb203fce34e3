//! The worker: claims jobs, runs their exports under a heartbeat, and settles them.
//!
//! [`Worker::attempt`] contains the steps of one export in order. A single match, [`Error::settlement`], decides
//! between retry and failure.
//!
//! This module does not depend on HTTP, and rows pass only through `pipeline`. Periodic tasks that are independent of a
//! job are in `maintenance`.

mod error;
mod heartbeat;
mod listen;
mod traced;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::catalog::current::CurrentCatalog;
use crate::file::{Exported, FileRecord};
use crate::job::times::Times;
use crate::job::{Export, Status};
use crate::pipeline::{self, WrittenExport};
use crate::publisher::{self, Publisher};
use crate::store::{
    self, Store,
    commit::{Commit, Committed, CommittedJob},
    lanes::evidence,
    lease::{Lease, LeasedExport, Renewal},
    manifests::uncommitted,
    queue::{Claim, Claimant, Settlement},
};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::spans::{self, Span};
use crate::telemetry::{job_event, metrics};
use crate::trace::TraceParent;
use crate::worker::error::{Error, Failed};
use crate::worker::heartbeat::{Heartbeat, Stop};
use cdc_capture::{
    self, ChangesCount, CurrentExport, ExportConnections, ExportReport, Progress, Purpose, Snapshot, SnapshotReader,
    SnapshotTable, Source,
};
use cdc_dataset::{Capture, CellMax, Dataset, FileColumns, MaskSecret};
use cdc_destination::{self, Destination, Drafts, FileName, Limited, Marker, MarkerFile, StallWatch};
use cdc_manifest::{ConsumerId, JobId, Manifest};
use failpoint::failpoint;
use pg_rows::export_type::ExportType;
use pg_session::failure::chain;

/// The pause after a database error.
const PAUSE: Duration = Duration::from_secs(1);

/// The time after which the rows of an export of changes are counted for its progress. The count takes Postgres about a
/// fifth of the export's time.
const COUNT_AFTER: Duration = Duration::from_secs(5);

/// The time after which an idle worker closes its connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time limit of a shutdown if the database does not respond. Other workers take over the jobs when their leases
/// expire.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit of a shutdown for an unresponsive destination. The next process finishes the remaining work: it publishes
/// files and removes drafts.
const DESTINATION_TIMEOUT: Duration = Duration::from_secs(2);

/// The number of written files that wait for the disk while an attempt goes on reading.
const MAX_STAGING: usize = 8;

/// The number of exports of a job that are published at the same time.
const MAX_PUBLISHING: usize = 4;

/// The detail of a job of several datasets whose attempt gave way to another session.
const GAVE_WAY: &str = "a session waited for an ACCESS EXCLUSIVE lock that the export prevents, so the export ended and is tried \
     again later: the service's log names the session and its table";

#[derive(Clone, Debug)]
pub struct Settings {
    pub workers: u32,
    pub times: Times,
    /// The time for which an export may keep another session waiting for a lock. `None`: it may for ever.
    pub give_way: Option<Duration>,
    pub cell_max: CellMax,
    /// The compression level of files. If `None`, each codec uses its default.
    pub compression_level: Option<u8>,
    pub mask_secret: Option<MaskSecret>,
    pub publisher: publisher::Settings,
}

/// The two stages of stopping a worker. Both tokens may be the same.
#[derive(Clone, Debug)]
pub struct Stops {
    /// When cancelled, the worker claims no more jobs and ends after its running jobs.
    pub drain: CancellationToken,
    /// When cancelled, the worker releases its running jobs. Cancelled together with `drain` or later.
    pub shutdown: CancellationToken,
}

/// Claims jobs and runs exports until it is stopped.
#[derive(Clone, Debug)]
pub struct Worker {
    settings: Settings,
    /// The value of `lease_owner`. It is informational and is not used for fencing.
    owner: Arc<str>,
    store: Store,
    source: Source,
    destination: Limited,
    catalog: CurrentCatalog,
    /// True if a claim has found that other jobs wait. The next worker that ends a job then claims again.
    others_wait: Arc<AtomicBool>,
    /// The number of jobs that the workers of this process have ended.
    ended: Arc<AtomicU64>,
    /// Notifies running attempts of cancelled jobs.
    cancels: broadcast::Sender<JobId>,
    /// Throttles repeated log lines. All workers of a process share it, because they have the same problems.
    throttle: Arc<LogThrottle>,
}

/// The next step of a worker that runs no job.
enum NextStep {
    /// Claim a job: one may be ready.
    Claim,
    /// Wait for a signal, which comes with the next job that is ready.
    Wait,
}

struct Claimed {
    /// `None` if no job is ready.
    attempt: Option<(ClaimedAttempt, ExportConnections)>,
    /// True if another job waits.
    has_others: bool,
}

struct ClaimedAttempt {
    lease: Lease,
    /// The datasets of its exports as the catalog had them at the claim.
    datasets: Vec<Arc<Dataset>>,
}

struct Member<'a> {
    leased: &'a LeasedExport,
    dataset: &'a Arc<Dataset>,
    /// The marker of its lane at the start of the attempt.
    marker: Option<Marker>,
    /// True to make no file if there are no rows.
    skips_empty: bool,
    /// The staged files. It has no parts before they are staged, and if there are none.
    exported: Exported,
}

struct WrittenAttempt<'a> {
    snapshot: Snapshot,
    members: Vec<Member<'a>>,
}

/// The state of the job after a failed attempt.
enum AttemptEnd {
    /// The attempt was committed, and only the response to the commit was lost. These are the files of the exports.
    Committed(Vec<FileRecord>),
    /// Another worker has the job, or the job was settled as pending, failed or cancelled.
    Otherwise,
}

impl Worker {
    pub fn new(
        settings: Settings,
        store: Store,
        source: Source,
        destination: Limited,
        catalog: CurrentCatalog,
    ) -> Worker {
        let owner = format!("{}:{}", std::process::id(), uuid::Uuid::new_v4().simple());
        let store = store.within(settings.times.call).for_workers();
        Worker {
            settings,
            owner: owner.into(),
            store,
            source,
            destination,
            catalog,
            others_wait: Arc::default(),
            ended: Arc::default(),
            cancels: broadcast::Sender::new(64),
            throttle: Arc::default(),
        }
    }

    /// Runs exports until it is stopped, and returns when no job is running.
    pub async fn run(self, stops: Stops) {
        let mut listening = JoinSet::new();
        listening.spawn(restart_on_panic(stops.shutdown.clone(), self.clone(), listen::listen));
        listening.spawn(restart_on_panic(stops.shutdown.clone(), self.clone(), listen::wake));
        let mut tasks = JoinSet::new();
        for _ in 0..self.settings.workers {
            tasks.spawn(restart_on_panic(stops.clone(), self.clone(), Worker::work));
        }
        let done = async { while tasks.join_next().await.is_some() {} };
        let timeout = async {
            stops.shutdown.cancelled().await;
            tokio::time::sleep(SHUTDOWN_TIMEOUT).await;
        };
        // A task that exceeds the time limit is dropped with `tasks`. `listening` delivers cancellations to running
        // jobs, so it must end after them.
        tokio::select! { () = done => {}, () = timeout => tracing::warn!(event = "workers_abandoned") }
    }

    /// Runs jobs one after another, and waits for a signal when there is none. Reuses the connections as long as they
    /// work.
    async fn work(self, stops: Stops) {
        let mut connections: Option<ExportConnections> = None;
        let mut next = NextStep::Wait;
        while !stops.drain.is_cancelled() {
            next = match next {
                NextStep::Claim => self.run_next(&mut connections, &stops).await,
                NextStep::Wait => self.wait(&mut connections, &stops.drain).await,
            };
        }
    }

    /// Claims a job and runs one attempt at it, if one is ready.
    async fn run_next(&self, connections: &mut Option<ExportConnections>, stops: &Stops) -> NextStep {
        let (begun, ended) = (SystemTime::now(), self.ended.load(Ordering::SeqCst));
        let claimed = match self.claim(connections, &stops.drain).await {
            Ok(claimed) => claimed,
            Err(error) => {
                self.store.claim_failed();
                let error = chain(&error);
                if let Some(times) = self.throttle.should_log(format!("claim: {error}")) {
                    tracing::warn!(event = "claim_failed", error, times);
                }
                tokio::select! { () = stops.drain.cancelled() => {}, () = tokio::time::sleep(PAUSE) => {} }
                return NextStep::Claim;
            }
        };
        if claimed.has_others {
            self.others_wait.store(true, Ordering::SeqCst);
        }
        let Some((attempt, ready)) = claimed.attempt else {
            // The others may have waited for a job that ended during the claim.
            let has_ended = self.ended.load(Ordering::SeqCst) != ended;
            return if claimed.has_others && has_ended { NextStep::Claim } else { NextStep::Wait };
        };
        if claimed.has_others {
            self.store.work().notify_last();
        }
        let span = self.span(&attempt.lease, begun).await;
        *connections = span.around(self.export(&span, &attempt, ready, &stops.shutdown)).await;
        self.ended.fetch_add(1, Ordering::SeqCst);
        let others_wait = self.others_wait.swap(false, Ordering::SeqCst);
        // Without others, the next job comes with a signal.
        if others_wait || connections.is_none() { NextStep::Claim } else { NextStep::Wait }
    }

    /// Waits for a signal that a job may be ready. Closes connections that are idle for long.
    async fn wait(&self, connections: &mut Option<ExportConnections>, drain: &CancellationToken) -> NextStep {
        tokio::select! {
            () = drain.cancelled() => NextStep::Wait,
            // A signal that came while all workers were busy is kept for the next one.
            () = self.store.work().notified() => NextStep::Claim,
            () = tokio::time::sleep(IDLE_TIMEOUT), if connections.is_some() => {
                if let Some(idle) = connections.take() {
                    idle.close().await;
                }
                NextStep::Wait
            }
        }
    }

    /// Claims a job. Opens the connections before the claim.
    async fn claim(
        &self,
        connections: &mut Option<ExportConnections>,
        drain: &CancellationToken,
    ) -> Result<Claimed, Error> {
        let timeout = self.settings.times.call;
        let kept = match connections.take() {
            Some(kept) => kept.checked(timeout).await,
            None => None,
        };
        let ready = match kept {
            Some(kept) => kept,
            None => self.source.connections(timeout).await?,
        };
        let Some(destination) = unless_stopped(drain, self.destination.id()).await else {
            return Ok(Claimed { attempt: None, has_others: false });
        };
        let catalog = self.catalog.get();
        let claimant = Claimant {
            owner: &self.owner,
            datasets: catalog.dataset_names(),
            // If the destination has no id, it is broken. The job is claimed anyway and fails with the reason.
            destination: destination.ok(),
            session: Some(ready.session()),
        };
        let Claim { lease, has_others } = self.store.claim(&claimant, self.settings.times.lease).await?;
        let Some(lease) = lease else {
            *connections = Some(ready);
            return Ok(Claimed { attempt: None, has_others });
        };
        let dataset =
            |export: &Export| Arc::clone(catalog.get(&export.dataset).expect("jobs of other datasets are not claimed"));
        let datasets = lease.exports().map(dataset).collect();
        Ok(Claimed { attempt: Some((ClaimedAttempt { lease, datasets }, ready)), has_others })
    }

    /// Runs one attempt to its end. Returns the connections if they can be reused.
    async fn export(
        &self,
        span: &Span,
        attempt: &ClaimedAttempt,
        connections: ExportConnections,
        shutdown: &CancellationToken,
    ) -> Option<ExportConnections> {
        let lease = &attempt.lease;
        let (first, datasets_in_all) = (lease.first(), lease.exports.len());
        match first.is_of_datasets {
            false => job_event!(info, first, "export_started", attempt = first.attempt),
            true => tracing::info!(
                event = "export_started",
                jobId = %lease.id(),
                consumerId = first.consumer.as_ref().map(ConsumerId::as_str),
                datasets = datasets_in_all,
                attempt = first.attempt,
            ),
        }
        let attempted = self.attempt(attempt, connections, shutdown).await;
        let (connections, records, with_files) = match attempted.inspect_err(|failed| span.fail(chain(&failed.error))) {
            Ok((connections, records)) => {
                let with_files = records.len();
                (connections, records, Some(with_files))
            }
            Err(failed) => match self.settle(lease, failed, shutdown).await {
                AttemptEnd::Committed(records) => (None, records, None),
                AttemptEnd::Otherwise => return None,
            },
        };
        // Skipped exports have nothing to publish.
        if !records.is_empty() {
            failpoint!("worker.committed", None);
            // A job without a trace got the one of this attempt.
            if let Err(error) = self.publish(records, span.place(), shutdown).await {
                // The job is committed. Maintenance publishes the files as soon as possible.
                tracing::error!(event = "publish_failed", jobId = %lease.id(), error);
            }
        }
        if first.is_of_datasets {
            tracing::info!(
                event = "export_committed", jobId = %lease.id(), datasets = datasets_in_all, withFiles = with_files
            );
        }
        connections
    }

    /// Publishes committed exports, some at the same time. Stops at the first one that can't be published.
    async fn publish(
        &self,
        records: Vec<FileRecord>,
        place: Option<TraceParent>,
        shutdown: &CancellationToken,
    ) -> Result<(), String> {
        let publisher = &self.publisher();
        let publish = async |record: FileRecord| {
            let trace = record.trace.or(place);
            let publishing = publisher.publish(FileRecord { trace, ..record });
            let publishing = tokio::time::timeout(self.settings.times.publish, publishing);
            match unless_stopped(shutdown, publishing).await {
                Some(Ok(published)) => published.map(drop).map_err(|error| chain(&error)),
                Some(Err(_)) => Err("publishing exceeded the time limit".to_owned()),
                None => Err("the service is shutting down".to_owned()),
            }
        };
        let mut published = pin!(stream::iter(records).map(publish).buffer_unordered(MAX_PUBLISHING));
        while let Some(done) = published.next().await {
            done?;
        }
        Ok(())
    }

    /// Runs one attempt: opens a snapshot, writes the rows of each export to hidden files, syncs the files, and commits
    /// them with the watermarks.
    async fn attempt(
        &self,
        attempt: &ClaimedAttempt,
        connections: ExportConnections,
        shutdown: &CancellationToken,
    ) -> Result<(Option<ExportConnections>, Vec<FileRecord>), Failed> {
        let (begun, times, lease) = (Instant::now(), self.settings.times, &attempt.lease);
        failpoint!("worker.claimed");
        let current = CurrentExport::new(&lease.first().dataset);
        let mut heartbeat = Heartbeat::start(&self.store, lease, times, current.clone(), self.cancels.subscribe());
        let export = self.write_files(attempt, connections, &current);
        let written = tokio::select! {
            biased;
            stop = heartbeat.stopped() => Err(Error::Stopped(stop).into()),
            () = shutdown.cancelled() => Err(Error::Stopped(Stop::Shutdown).into()),
            written = export => written,
        };
        // Ended before the commit. Otherwise a renewal would wait for the row lock of the commit, and then report the
        // finished job as lost.
        heartbeat.end().await;
        let mut written = written?;
        failpoint!("worker.staged");
        // A recent lease needs no extension. The commit itself checks the token and the cancellation.
        if begun.elapsed() > times.beat {
            let extend = || self.store.extend(lease, times.lease, current.read());
            match self.retry_while_leased(lease, shutdown, extend).await.map_err(Error::from)? {
                Renewal::Held => {}
                Renewal::CancelAsked => return Err(Error::Stopped(Stop::CancelAsked).into()),
                Renewal::Lost => return Err(Error::Stopped(Stop::LeaseLost).into()),
            }
        }
        failpoint!("worker.extended");
        // A commit may wait for locks as long as the lease lasts. After that, it is abandoned.
        let committed = async {
            let commit = tokio::time::timeout(times.commit, self.commit(lease, &mut written)).await;
            let (records, job) = commit.unwrap_or(Err(Error::Stopped(Stop::Silence)))?;
            failpoint!("worker.commit");
            let connections = written.snapshot.commit(times.commit).await?;
            self.store.announce_committed(job);
            Ok::<_, Error>((connections, records))
        };
        Ok(spans::step("commit", committed).await?)
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(&self.store, &self.destination, &self.settings.publisher, self.settings.times)
    }

    /// Writes the rows of the commit. Returns the records of the files.
    async fn commit(
        &self,
        lease: &Lease,
        written: &mut WrittenAttempt<'_>,
    ) -> Result<(Vec<FileRecord>, CommittedJob), Error> {
        let WrittenAttempt { snapshot, members } = written;
        let publisher = self.publisher();
        let with_files = members.iter().filter(|member| !member.exported.parts.is_empty()).count();
        let (mut commits, mut records) = (Vec::new(), Vec::new());
        for (member, table) in members.iter().zip(&snapshot.tables) {
            let mut commit = member.commit(table);
            if !member.exported.parts.is_empty() {
                let (mut record, chained) = uncommitted(lease, member.leased, &commit, with_files);
                let link = member.leased.link.as_ref();
                commit.manifest =
                    chained.zip(link).map(|(chained, link)| publisher.manifest(&record, link.number, chained));
                record.files.manifest = commit.manifest.as_ref().map(Manifest::text);
                records.push(record);
            }
            commits.push(commit);
        }
        let (transaction, awaits_standby) = snapshot.begin_commit(self.settings.times.lease).await?;
        let job = match self.store.commit(transaction, lease, &commits).await? {
            Committed::Done(job) => job,
            Committed::NotOurs => return Err(Error::NotOurs),
            Committed::WatermarkChanged => return Err(Error::WatermarkChanged),
        };
        for record in &mut records {
            record.awaits_standby = awaits_standby;
            if !job.is_planned(&record.files.dataset) {
                record.files.manifest = None;
            }
        }
        Ok((records, job))
    }

    /// Takes a snapshot and writes the rows of each export, one after the other.
    async fn write_files<'a>(
        &self,
        ClaimedAttempt { lease, datasets }: &'a ClaimedAttempt,
        connections: ExportConnections,
        current: &CurrentExport,
    ) -> Result<WrittenAttempt<'a>, Failed> {
        let mut members = Vec::new();
        for (leased, dataset) in lease.exports.iter().zip(datasets) {
            let marker = self.marker(lease, &leased.export).await?;
            members.push(Member { leased, dataset, marker, skips_empty: false, exported: Exported::default() });
        }
        let behind: Vec<_> = members.iter().filter_map(Member::behind_marker).collect();
        if !behind.is_empty() {
            self.store.raise_lanes(lease, &behind).await.map_err(Error::from)?;
            return Err(Error::LaneRaised.into());
        }
        // Check for a full disk before the snapshot is opened, because the snapshot delays vacuum. The draft is created
        // only after that.
        let stall = cdc_destination::stall_limit();
        let room = tokio::time::timeout(stall, self.destination.require_room()).await;
        room.unwrap_or(Err(cdc_destination::Error::Stalled(stall.as_secs()))).map_err(Error::from)?;
        let purposes: Vec<_> = members.iter().map(Member::purpose).collect();
        let (stalls, times) = (StallWatch::default(), self.settings.times);
        let lanes: Vec<_> = members.iter().map(|it| (it.leased.export.lane(), it.marker.as_ref())).collect();
        let opening = connections
            .open(&purposes, times.lease, stall, async |leader| evidence(leader, Some(lease.id()), &lanes).await);
        let mut snapshot = spans::step("open", opening).await?;
        let (leader, reading) = snapshot.split();
        let write = self.write_members(lease, &mut members, reading, (current, &stalls));
        let written = tokio::select! {
            lost = leader.keep_alive(times.beat, times.lease, self.settings.give_way) => Err(Error::from(lost).into()),
            stalled = stalls.stalled(self.destination.stall_limit()) => Err(Error::from(stalled).into()),
            written = write => written,
        };
        if let Err(Failed { error: Error::Source(cdc_capture::Error::GaveWay { .. }), .. }) = written {
            snapshot.give_up().await;
        }
        written?;
        Ok(WrittenAttempt { snapshot, members })
    }

    /// Writes and stages the files of each export, one after the other.
    async fn write_members(
        &self,
        lease: &Lease,
        members: &mut [Member<'_>],
        mut reading: SnapshotReader<'_>,
        watches: (&CurrentExport, &StallWatch),
    ) -> Result<(), Failed> {
        self.decide_skips(lease, members, reading.tables()).await?;
        // As soon as possible: a reader that meets somebody who waits for the table has to give up.
        if !members[0].is_unread(&reading.tables()[0]) {
            reading.join(0).await.map_err(Failed::at(0))?;
        }
        if lease.is_trial {
            self.store.table_opened(lease).await.map_err(Error::from)?;
        }
        failpoint!("worker.opened");
        let (mut staging, mut staged) = (FuturesUnordered::new(), Vec::new());
        for (at, member) in members.iter().enumerate() {
            if member.is_unread(&reading.tables()[at]) {
                continue;
            }
            let written = self.write_file(lease, member, &mut reading, at, watches).await.map_err(Failed::at(at))?;
            // The disk syncs this file while the next table is read.
            let staging_file = stage(written, Arc::clone(member.dataset), reading.tables()[at].new_position.taken_at);
            let task = AbortOnDropHandle::new(tokio::spawn(staging_file));
            staging.push(async move {
                let exported = task.await.map_err(pipeline::Error::Panicked).flatten().map_err(Failed::at(at))?;
                Ok::<_, Failed>((at, exported))
            });
            if staging.len() > MAX_STAGING {
                // A reader that waited for the destination would hold its snapshot and its lock.
                reading.end(self.settings.times.lease).await;
                staged.extend(staging.try_next().await?);
            }
        }
        let (last, ()) = tokio::join!(staging.try_collect::<Vec<_>>(), reading.end(self.settings.times.lease));
        for (at, exported) in staged.into_iter().chain(last?) {
            members[at].exported = exported;
        }
        Ok(())
    }

    async fn marker(&self, lease: &Lease, export: &Export) -> Result<Option<Marker>, Error> {
        let Some(lane) = export.lane() else { return Ok(None) };
        let file = MarkerFile::new(&lease.database, lane);
        let marker = self.destination.lane_marker(&file).await?;
        if marker.as_ref().is_some_and(Marker::is_unreadable) {
            tracing::warn!(event = "marker_unreadable", jobId = %export.job, file = file.name());
        }
        Ok(marker)
    }

    /// Writes the rows of one export to hidden files. The caller must stage the last one.
    async fn write_file(
        &self,
        lease: &Lease,
        Member { leased: LeasedExport { export, .. }, dataset, skips_empty, .. }: &Member<'_>,
        reading: &mut SnapshotReader<'_>,
        at: usize,
        (current, stalls): (&CurrentExport, &StallWatch),
    ) -> Result<WrittenExport, Error> {
        let name = FileName {
            dataset: export.dataset.clone(),
            consumer: export.consumer.clone(),
            name: export.output_filename.clone(),
            encoding: export.encoding,
        };
        let drafts = Drafts::new(&self.destination, lease.hidden_file(at), name, stalls);
        // Late rows exist only with triggers and an `updated_at` column.
        let exact = dataset.capture == Capture::Triggers && dataset.updated_at.is_some();
        let table = &reading.tables()[at];
        let since = table.position.since;
        let Settings { cell_max, compression_level, ref mask_secret, .. } = self.settings;
        let accepted = &table.mask_secret;
        let mask_secret = mask_secret.as_ref().filter(|secret| accepted.as_ref() == Some(&secret.fingerprint));
        let spec = pipeline::ExportSpec {
            export,
            since: since.filter(|_| exact),
            cell_max,
            max_file_bytes: export.max_file_bytes.or(dataset.max_file_bytes),
            compression_level,
            mask_secret,
            skips_empty: *skips_empty,
            progress: &current.begin(&export.dataset),
        };
        let rows = reading.rows(at).await?;
        let count = rows.changes_count(export.export_type);
        let attributes = [("cdc_export.dataset", &*export.dataset)];
        let written = spans::step_with("stream", attributes, pipeline::run(rows, &spec, drafts));
        tokio::select! {
            biased;
            written = written => Ok(written?),
            never = self.count_changes(count, spec.progress) => match never {},
        }
    }

    /// Counts the rows that an export of changes expects, once it has run for five seconds. A short one pays nothing.
    async fn count_changes(&self, count: Option<ChangesCount>, progress: &Progress) -> Infallible {
        tokio::time::sleep(COUNT_AFTER).await;
        if let Some(count) = count {
            match self.source.count_changes(&count).await {
                Ok(rows) => progress.expect(rows),
                Err(error) => tracing::debug!(event = "changes_not_counted", error = chain(&error)),
            }
        }
        std::future::pending().await
    }

    /// Decides which exports make no file if they find no rows. Never skips the first export of a lane, an export whose
    /// columns changed, or one with a remark on its continuity: their files carry news even without rows.
    async fn decide_skips(
        &self,
        lease: &Lease,
        members: &mut [Member<'_>],
        tables: &[SnapshotTable],
    ) -> Result<(), Error> {
        let Some(consumer) = &lease.first().consumer else { return Ok(()) };
        let plain: Vec<_> = members.iter_mut().zip(tables).filter(|(member, table)| member.may_skip(table)).collect();
        if plain.is_empty() {
            return Ok(());
        }
        let datasets: Vec<_> = plain.iter().map(|(member, _)| &*member.leased.export.dataset).collect();
        let signatures: Vec<_> = plain.iter().map(|(_, table)| table.schema.signature()).collect();
        let are_same = self.store.are_signatures_of_last(consumer, &datasets, &signatures).await?;
        for ((member, _), is_same) in plain.into_iter().zip(are_same) {
            member.skips_empty = is_same;
        }
        Ok(())
    }

    /// Settles the job of an attempt that failed. If only the response to the commit was lost, detects that the job is
    /// committed.
    async fn settle(&self, lease: &Lease, failed: Failed, shutdown: &CancellationToken) -> AttemptEnd {
        let dataset = |at: usize| &*lease.exports[at].export.dataset;
        let failed_dataset = failed.export().map(dataset);
        let (mut settlement, cause) = (failed.error.settlement(failed_dataset), chain(&failed.error));
        if let Settlement::GiveWay(failure) = &mut settlement
            && lease.exports.len() > 1
        {
            // A caller that may see one dataset must not learn the table of another one. The log names it.
            GAVE_WAY.clone_into(&mut failure.detail);
        }
        let need_full: Vec<_> = failed.need_full_exports().iter().map(|at| dataset(*at)).collect();
        let settle = || self.store.settle(lease, &need_full, &settlement, &cause);
        let left = match self.retry_while_leased(lease, shutdown, settle).await {
            Ok(Some(transition)) => transition.export,
            Ok(None) => return self.committed_after_all(lease, shutdown).await,
            Err(failed) => {
                // The lease expires, another worker takes over the job, and maintenance removes the file.
                tracing::error!(event = "settle_failed", jobId = %lease.id(), error = cause, cause = chain(&failed));
                return AttemptEnd::Otherwise;
            }
        };
        // This attempt can no longer be committed, so its files can be removed.
        if let Err(error) = self.remove_drafts(lease, shutdown).await {
            tracing::warn!(event = "draft_left_behind", jobId = %lease.id(), error);
        }
        if left.status == Status::Pending {
            log_return(lease, &settlement, failed_dataset, &need_full, &cause);
        }
        if let Settlement::GiveWay(_) = settlement {
            metrics::gave_way();
        }
        AttemptEnd::Otherwise
    }

    async fn remove_drafts(&self, lease: &Lease, shutdown: &CancellationToken) -> Result<(), String> {
        let abort = async {
            for at in 0..lease.exports.len() {
                self.destination.abort(&lease.hidden_file(at)).await?;
            }
            Ok::<_, cdc_destination::Error>(())
        };
        match unless_stopped(shutdown, abort).await {
            Some(aborted) => aborted.map_err(|error| chain(&error)),
            None => Err("the service is shutting down".to_owned()),
        }
    }

    async fn committed_after_all(&self, lease: &Lease, shutdown: &CancellationToken) -> AttemptEnd {
        let token = lease.token().as_uuid().to_string();
        let ours = |record: &FileRecord| record.files.parts.iter().all(|part| part.staged.name.contains(&token));
        let mut records = Vec::new();
        // Some exports of a job may be skipped. They have no file.
        for Export { job, dataset, .. } in lease.exports() {
            match self.retry_while_leased(lease, shutdown, || self.store.file(*job, dataset)).await {
                Ok(Some(record)) if ours(&record) => records.push(record),
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => break,
            }
        }
        if records.is_empty() {
            tracing::warn!(event = "lease_lost", jobId = %lease.id());
            return AttemptEnd::Otherwise;
        }
        AttemptEnd::Committed(records)
    }

    /// Retries a statement for the duration of a lease, so that a restart of the database loses nothing. During a
    /// shutdown, retries for five seconds.
    async fn retry_while_leased<T, F>(
        &self,
        lease: &Lease,
        shutdown: &CancellationToken,
        statement: impl Fn() -> F,
    ) -> Result<T, store::Error>
    where
        F: Future<Output = Result<T, store::Error>>,
    {
        let begun = Instant::now();
        loop {
            let time = if shutdown.is_cancelled() { Duration::from_secs(5) } else { self.settings.times.commit };
            match statement().await {
                Err(store::Error::Unavailable(cause) | store::Error::LockConflict(cause)) if begun.elapsed() < time => {
                    let (id, error) = (lease.id(), chain(&cause));
                    if let Some(times) = self.throttle.should_log(format!("{id}: {error}")) {
                        tracing::warn!(event = "database_unavailable", jobId = %id, error, times);
                    }
                    tokio::time::sleep(PAUSE.min(self.settings.times.call)).await;
                }
                done => return done,
            }
        }
    }
}

impl<'a> Member<'a> {
    /// Returns the dataset, and the place of the marker's export, if this export doesn't come after that one: the
    /// database was restored.
    fn behind_marker(&self) -> Option<(&'a str, i64)> {
        let marked = self.marker.as_ref()?.order;
        let export = &self.leased.export;
        export.order.filter(|own| *own <= marked).map(|_| (&*export.dataset, marked))
    }

    fn purpose(&self) -> Purpose<'_> {
        let Export { consumer, export_type, encoding, .. } = &self.leased.export;
        Purpose {
            dataset: self.dataset,
            consumer: consumer.as_ref().map(ConsumerId::as_str),
            export_type: *export_type,
            format: encoding.format,
        }
    }

    /// Returns true if the export may be skipped, should its columns be those of the last one.
    fn may_skip(&self, table: &SnapshotTable) -> bool {
        let export = &self.leased.export;
        export.export_type != ExportType::Full
            && !table.begins()
            && table.report.continuity.is_none()
            && table.report.quiet_deletes == 0
            && export.skip_empty.unwrap_or(self.dataset.skip_empty)
    }

    /// Returns true if the table need not be read, because the export is skipped.
    fn is_unread(&self, table: &SnapshotTable) -> bool {
        self.skips_empty && table.has_no_changes()
    }

    fn commit<'m>(&'m self, table: &SnapshotTable) -> Commit<'m> {
        let export = &self.leased.export;
        let schema = table.schema.narrowed(&export.selection);
        let mut new_position = table.new_position.clone();
        // An earlier position that somebody puts back has the place of an earlier export.
        new_position.table.guard_state.set("lane_sequence", export.order);
        Commit {
            export,
            exported: &self.exported,
            position: table.position.clone(),
            new_position,
            report: ExportReport { late_rows: self.exported.late_rows, ..table.report.clone() },
            signature: schema.signature(),
            columns: FileColumns {
                begins: table.begins(),
                ..schema.saved_columns(export.export_type, table.new_position.snapshot.as_deref())
            },
            marker: self.marker.as_ref().map(|marker| marker.job),
            newly_masked: table.schema.newly_masked.clone(),
            manifest: None,
        }
    }
}

/// Logs that a job is pending again.
fn log_return(lease: &Lease, settlement: &Settlement, failed: Option<&str>, need_full: &[&str], error: &str) {
    let id = lease.id();
    match settlement {
        Settlement::Release => tracing::info!(event = "export_released", jobId = %id, error),
        Settlement::Fail(_) => {
            let (first, datasets) = (need_full.first().copied(), need_full.len());
            tracing::warn!(event = "export_healed", jobId = %id, dataset = first, datasets, error);
        }
        Settlement::Retry(_) | Settlement::RetryLocked(_) => {
            let (attempt, dataset) = (lease.first().attempt, failed.filter(|_| lease.exports.len() > 1));
            tracing::warn!(event = "export_retried", jobId = %id, attempt, dataset, error);
        }
        Settlement::GiveWay(_) => tracing::warn!(event = "export_gave_way", jobId = %id, error),
    }
}

/// Restarts a task after a panic, which is a defect. Another worker takes over the task's job when its lease expires.
/// Other tasks continue.
async fn restart_on_panic<S: Clone, F: Future<Output = ()>>(stops: S, worker: Worker, task: impl Fn(Worker, S) -> F) {
    while AssertUnwindSafe(task(worker.clone(), stops.clone())).catch_unwind().await.is_err() {
        tracing::error!(event = "worker_panicked");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for an operation on the destination. Returns `None` if the process is shutting down and the operation exceeds
/// [`DESTINATION_TIMEOUT`].
async fn unless_stopped<T>(shutdown: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    let given_up = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DESTINATION_TIMEOUT).await;
    };
    tokio::select! { done = work => Some(done), () = given_up => None }
}

async fn stage(
    written: WrittenExport,
    dataset: Arc<Dataset>,
    taken_at: DateTime<Utc>,
) -> Result<Exported, pipeline::Error> {
    let mut exported = written.stage().await?;
    if dataset.updated_at.is_none() {
        exported.last_updated_at = Some(taken_at).filter(|_| exported.rows > 0);
    } else if dataset.capture != Capture::Triggers {
        // A row with a future time would otherwise hide all later changes up to that time.
        exported.last_updated_at = exported.last_updated_at.map(|time| time.min(taken_at));
    }
    Ok(exported)
}
