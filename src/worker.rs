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
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::dataset::current::CurrentCatalog;
use crate::dataset::mask::MaskSecret;
use crate::dataset::{Capture, CellMax, Dataset};
use crate::failpoint;
use crate::file::name::FileName;
use crate::file::{Exported, FileRecord};
use crate::job::columns::FileColumns;
use crate::job::marker::Marker;
use crate::job::{ConsumerId, CurrentExport, Export, ExportReport, ExportType, JobId, Progress, Status};
use crate::manifest::Manifest;
use crate::pipeline::{self, WrittenExport};
use crate::publisher::{self, Publisher};
use crate::sink::{self, Destination, Drafts, Limited, MarkerFile, StallWatch};
use crate::source::{
    self, Source,
    connections::ExportConnections,
    lag::ChangesCount,
    reading::SnapshotReader,
    snapshot::{Purpose, Snapshot, SnapshotTable},
};
use crate::store::{
    self, Store,
    commit::{Commit, CommitInput, Committed, CommittedJob},
    lease::{self, Lease, Renewal},
    manifests::uncommitted,
    queue::{Claim, Claimant, Settlement},
};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::spans::{self, Span};
use crate::telemetry::{chain, job_event, metrics};
use crate::trace::TraceParent;
use crate::worker::error::{Error, Failed};
use crate::worker::heartbeat::{Heartbeat, Stop};

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

/// The worker's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The number of concurrent exports in this process.
    pub workers: u32,
    /// The duration of a lease. A job whose lease is not renewed for this long can be taken over.
    pub lease: Duration,
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

/// An attempt that this worker has claimed.
struct ClaimedAttempt {
    lease: Lease,
    /// The datasets of its exports as the catalog had them at the claim.
    datasets: Vec<Arc<Dataset>>,
    connections: ExportConnections,
}

/// An attempt whose files have been written.
struct WrittenAttempt {
    snapshot: Snapshot,
    exports: Vec<Exported>,
    /// The job of the export that the marker of each lane named at the start of the attempt.
    markers: Vec<Option<JobId>>,
}

/// The state of the job after a failed attempt.
enum AttemptEnd {
    /// The attempt was committed, and only the response to the commit was lost.
    Committed,
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
        let store = store.within(lease::call_timeout(settings.lease)).for_workers();
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
        // Jobs may have been waiting since before the start.
        self.store.work().notify_one();
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
    async fn work(self, Stops { drain, shutdown }: Stops) {
        let mut connections: Option<ExportConnections> = None;
        let (mut may_have_job, mut has_completed) = (false, false);
        while !drain.is_cancelled() {
            if may_have_job {
                let (begun, ended) = (SystemTime::now(), self.ended.load(Ordering::SeqCst));
                match self.claim(&mut connections, has_completed, &drain).await {
                    Ok(Ok(claimed)) => {
                        if claimed.lease.has_others {
                            self.others_wait.store(true, Ordering::SeqCst);
                            self.store.work().notify_last();
                        }
                        let span = self.span(&claimed.lease, begun).await;
                        connections = span.around(self.export(&span, claimed, &shutdown)).await;
                        has_completed = connections.is_some();
                        self.ended.fetch_add(1, Ordering::SeqCst);
                        // Without others, the next job comes with a signal.
                        may_have_job = self.others_wait.swap(false, Ordering::SeqCst) || !has_completed;
                    }
                    Ok(Err(others_wait)) => {
                        if others_wait {
                            self.others_wait.store(true, Ordering::SeqCst);
                        }
                        // The others may have waited for a job that ended during the claim.
                        may_have_job = others_wait && self.ended.load(Ordering::SeqCst) != ended;
                    }
                    Err(error) => {
                        self.store.claim_failed();
                        let error = chain(&error);
                        if let Some(times) = self.throttle.should_log(format!("claim: {error}")) {
                            tracing::warn!(event = "claim_failed", error, times);
                        }
                        tokio::select! { () = drain.cancelled() => {}, () = tokio::time::sleep(PAUSE) => {} }
                    }
                }
                continue;
            }
            tokio::select! {
                () = drain.cancelled() => {}
                // A signal that came while all workers were busy is kept for the next one.
                () = self.store.work().notified() => may_have_job = true,
                () = tokio::time::sleep(IDLE_TIMEOUT), if connections.is_some() => {
                    if let Some(idle) = connections.take() {
                        idle.close().await;
                    }
                }
            }
        }
    }

    /// Claims a job. Opens the connections before the claim. If none is ready, returns true if one waits.
    async fn claim(
        &self,
        connections: &mut Option<ExportConnections>,
        has_completed: bool,
        drain: &CancellationToken,
    ) -> Result<Result<ClaimedAttempt, bool>, Error> {
        let kept = match connections.take() {
            Some(kept) => kept.checked(self.call_timeout()).await,
            None => None,
        };
        let ready = match kept {
            Some(kept) => kept,
            None => self.source.connections(self.call_timeout()).await?,
        };
        // If the destination has no id, it is broken. The job is claimed anyway and fails with the reason.
        let Some(found) = unless_stopped(drain, self.destination.id()).await else { return Ok(Err(false)) };
        let destination = found.ok();
        let catalog = self.catalog.get();
        let (owner, datasets, session) = (&*self.owner, &**catalog.dataset_names(), Some(ready.session()));
        let claimant = Claimant { owner, datasets, destination, has_completed, session };
        match self.store.claim(&claimant, self.settings.lease).await? {
            Claim::Job(lease) => {
                let dataset = |export: &Export| {
                    Arc::clone(catalog.get(&export.dataset).expect("jobs of other datasets are not claimed"))
                };
                let datasets = lease.exports().map(dataset).collect();
                Ok(Ok(ClaimedAttempt { datasets, lease: *lease, connections: ready }))
            }
            Claim::Nothing(others_wait) => {
                *connections = Some(ready);
                Ok(Err(others_wait))
            }
        }
    }

    /// Runs one attempt to its end. Returns the connections if they can be reused.
    async fn export(
        &self,
        span: &Span,
        ClaimedAttempt { lease, datasets, connections }: ClaimedAttempt,
        shutdown: &CancellationToken,
    ) -> Option<ExportConnections> {
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
        let attempted = self.attempt(&lease, &datasets, connections, shutdown).await;
        let (connections, records) = match attempted.inspect_err(|failed| span.fail(chain(&failed.error))) {
            Ok((connections, records)) => (connections, Some(records)),
            Err(failed) => match self.settle(&lease, failed, shutdown).await {
                AttemptEnd::Committed => (None, None),
                AttemptEnd::Otherwise => return None,
            },
        };
        let files = records.as_ref().map(Vec::len);
        // Skipped exports have nothing to publish.
        if records.as_ref().is_none_or(|records| !records.is_empty()) {
            failpoint!("worker.committed", None);
            let published = match records {
                // A job without a trace got the one of this attempt.
                Some(records) => self.publish(records, span.place(), shutdown).await,
                None => self.publish_all(&lease, shutdown).await,
            };
            if let Err(error) = published {
                // The job is committed. Maintenance publishes the files as soon as possible.
                tracing::error!(event = "publish_failed", jobId = %lease.id(), error);
            }
        }
        if first.is_of_datasets {
            tracing::info!(
                event = "export_committed", jobId = %lease.id(), datasets = datasets_in_all, withFiles = files
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
            let publishing = async { publisher.publish(FileRecord { trace, ..record }).await.map(drop) };
            self.within_lease(publishing, shutdown).await
        };
        let mut published = pin!(stream::iter(records).map(publish).buffer_unordered(MAX_PUBLISHING));
        while let Some(done) = published.next().await {
            done?;
        }
        Ok(())
    }

    /// Publishes the exports of an attempt that was committed although the answer was lost.
    async fn publish_all(&self, lease: &Lease, shutdown: &CancellationToken) -> Result<(), String> {
        let publisher = self.publisher();
        for export in lease.exports() {
            self.within_lease(publisher.publish_export(export.job, &export.dataset), shutdown).await?;
        }
        Ok(())
    }

    async fn within_lease(
        &self,
        publishing: impl Future<Output = Result<(), publisher::Error>>,
        shutdown: &CancellationToken,
    ) -> Result<(), String> {
        let publishing = tokio::time::timeout(self.settings.lease, publishing);
        match unless_stopped(shutdown, publishing).await {
            Some(Ok(published)) => published.map_err(|error| chain(&error)),
            Some(Err(_)) => Err("publishing exceeded the time limit".to_owned()),
            None => Err("the service is shutting down".to_owned()),
        }
    }

    /// Runs one attempt: opens a snapshot, writes the rows of each export to hidden files, syncs the files, and commits
    /// them with the watermarks.
    async fn attempt(
        &self,
        lease: &Lease,
        datasets: &[Arc<Dataset>],
        connections: ExportConnections,
        shutdown: &CancellationToken,
    ) -> Result<(Option<ExportConnections>, Vec<FileRecord>), Failed> {
        let begun = Instant::now();
        failpoint!("worker.claimed");
        let current = CurrentExport::new(&lease.first().dataset);
        let mut heartbeat =
            Heartbeat::start(&self.store, lease, current.clone(), self.settings.lease, self.cancels.subscribe());
        let export = self.write_files(lease, datasets, connections, &current);
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
        if begun.elapsed() > lease::interval(self.settings.lease) {
            let extend = || self.store.extend(lease, self.settings.lease, current.read());
            match self.retry_while_leased(lease, shutdown, extend).await.map_err(Error::from)? {
                Renewal::Held => {}
                Renewal::CancelAsked => return Err(Error::Stopped(Stop::CancelAsked).into()),
                Renewal::Lost => return Err(Error::Stopped(Stop::LeaseLost).into()),
            }
        }
        failpoint!("worker.extended");
        // A commit may wait for locks as long as the lease lasts. After that, it is abandoned.
        let time = self.settings.lease;
        let committed = async {
            let commit = self.commit(lease, &mut written);
            let (records, job) =
                tokio::time::timeout(time, commit).await.unwrap_or(Err(Error::Stopped(Stop::Silence)))?;
            failpoint!("worker.commit");
            let connections = written.snapshot.commit(time).await?;
            self.store.announce_committed(job);
            Ok::<_, Error>((connections, records))
        };
        Ok(spans::step("commit", committed).await?)
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(&self.store, &self.destination, &self.settings.publisher, self.settings.lease)
    }

    /// Writes the rows of the commit. Returns the records of the files.
    async fn commit(
        &self,
        lease: &Lease,
        written: &mut WrittenAttempt,
    ) -> Result<(Vec<FileRecord>, CommittedJob), Error> {
        let WrittenAttempt { snapshot, exports, markers } = written;
        let publisher = self.publisher();
        let mut inputs = Vec::new();
        let mut records = Vec::new();
        let with_files = exports.iter().filter(|exported| !exported.parts.is_empty()).count();
        for (((leased, table), exported), marker) in
            lease.exports.iter().zip(&snapshot.tables).zip(&*exports).zip(&*markers)
        {
            let schema = table.schema.narrowed(&leased.export.selection);
            let mut found = CommitInput {
                position: table.position.clone(),
                new_position: table.new_position.clone(),
                report: ExportReport { late_rows: exported.late_rows, ..table.report.clone() },
                signature: schema.signature(),
                columns: FileColumns {
                    begins: table.begins(),
                    ..schema.saved_columns(leased.export.export_type, table.new_position.snapshot.as_deref())
                },
                marker: *marker,
                newly_masked: table.schema.newly_masked.clone(),
                manifest: None,
            };
            if !exported.parts.is_empty() {
                let (record, chained) = uncommitted(lease, leased, &found, exported, with_files);
                found.manifest = chained
                    .zip(leased.link.as_ref())
                    .map(|(chained, link)| publisher.manifest(&record, link.number, chained));
                records.push(FileRecord { manifest: found.manifest.as_ref().map(Manifest::text), ..record });
            }
            inputs.push(found);
        }
        let commits = lease.exports().zip(&inputs).zip(&*exports);
        let commits: Vec<_> = commits.map(|((export, found), exported)| Commit { export, found, exported }).collect();
        let (transaction, awaits_standby) = snapshot.begin_commit(self.settings.lease).await?;
        match self.store.commit(transaction, lease, &commits).await? {
            Committed::Done(job) => {
                let with_files =
                    exports.iter().zip(&job.are_planned).filter(|(exported, _)| !exported.parts.is_empty());
                for (record, (_, is_planned)) in records.iter_mut().zip(with_files) {
                    record.manifest.take_if(|_| !is_planned);
                    record.awaits_standby = awaits_standby;
                }
                Ok((records, job))
            }
            Committed::NotOurs => Err(Error::NotOurs),
            Committed::WatermarkChanged => Err(Error::WatermarkChanged),
        }
    }

    /// Takes a snapshot and writes the rows of each export, one after the other.
    async fn write_files(
        &self,
        lease: &Lease,
        datasets: &[Arc<Dataset>],
        connections: ExportConnections,
        current: &CurrentExport,
    ) -> Result<WrittenAttempt, Failed> {
        let mut markers = Vec::new();
        for export in lease.exports() {
            markers.push(self.marker(lease, export).await?);
        }
        let ahead = |(export, marker): (&'_ Export, &Option<Marker>)| {
            let marked = marker.as_ref()?.order;
            export.order.filter(|own| *own <= marked).map(|_| marked)
        };
        let ahead: Vec<_> = lease
            .exports()
            .zip(&markers)
            .filter_map(|(export, marker)| Some((&*export.dataset, ahead((export, marker))?)))
            .collect();
        if !ahead.is_empty() {
            self.store.raise_lanes(lease, &ahead).await.map_err(Error::from)?;
            return Err(Error::LaneRaised.into());
        }
        // Check for a full disk before the snapshot is opened, because the snapshot delays vacuum. The draft is created
        // only after that.
        self.destination.require_room().await.map_err(Error::from)?;
        let mut purposes = Vec::new();
        for ((export, dataset), marker) in lease.exports().zip(datasets).zip(&markers) {
            let (consumer, export_type, format) =
                (export.consumer.as_ref(), export.export_type, export.encoding.format);
            let (job, marker) = (export.job, marker.as_ref());
            purposes.push(Purpose { dataset, consumer, export_type, format, job, marker });
        }
        let opening = connections.open(&purposes, self.settings.lease, sink::stall_limit());
        let mut snapshot = spans::step("open", opening).await?;
        let (stalls, time) = (StallWatch::default(), self.settings.lease);
        let (leader, mut reading) = snapshot.split();
        let write = async {
            let may_skip = self.may_skip(lease, datasets, reading.tables()).await?;
            let is_unread = |at: usize, tables: &[SnapshotTable]| may_skip[at] && tables[at].has_no_changes();
            // As soon as possible: a reader that meets somebody who waits for the table has to give up.
            if !is_unread(0, reading.tables()) {
                reading.join(0).await.map_err(Failed::at(0))?;
            }
            if lease.is_trial {
                self.store.table_opened(lease).await.map_err(Error::from)?;
            }
            failpoint!("worker.opened");
            let mut exports: Vec<_> = lease.exports().map(|_| Exported::default()).collect();
            let mut staging = FuturesUnordered::new();
            for (at, (export, dataset)) in lease.exports().zip(datasets).enumerate() {
                if is_unread(at, reading.tables()) {
                    continue;
                }
                let (skips_empty, watches) = (may_skip[at], (current, &stalls));
                let written = self.write_file(lease, (export, dataset), &mut reading, at, skips_empty, watches);
                let written = written.await.map_err(Failed::at(at))?;
                // The disk syncs this file while the next table is read.
                let staged = stage(written, Arc::clone(dataset), reading.tables()[at].new_position.taken_at);
                let staged = AbortOnDropHandle::new(tokio::spawn(staged));
                staging.push(async move { (at, staged.await) });
                if staging.len() > MAX_STAGING {
                    // A reader that waited for the destination would hold its snapshot and its lock.
                    reading.end(time).await;
                    collect(&mut exports, staging.next().await)?;
                }
            }
            let collected = async {
                while !staging.is_empty() {
                    collect(&mut exports, staging.next().await)?;
                }
                Ok::<_, Failed>(exports)
            };
            let (exports, ()) = tokio::join!(collected, reading.end(time));
            exports
        };
        let exports = tokio::select! {
            lost = leader.keep_alive(lease::interval(time), time, self.settings.give_way) => Err(Error::from(lost).into()),
            stalled = stalls.stalled(self.destination.stall_limit()) => Err(Error::from(stalled).into()),
            exports = write => exports,
        };
        if let Err(Failed { error: Error::Source(source::Error::GaveWay { .. }), .. }) = exports {
            snapshot.give_up().await;
        }
        let exports = exports?;
        let markers = markers.into_iter().map(|marker| marker.map(|marker| marker.job)).collect();
        Ok(WrittenAttempt { snapshot, exports, markers })
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
        (export, dataset): (&Export, &Dataset),
        reading: &mut SnapshotReader<'_>,
        at: usize,
        skips_empty: bool,
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
            skips_empty,
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

    /// For each export, returns true if it is to make no file if it finds no rows. An export that has something else to
    /// tell makes a file all the same: the first one of a lane, and one with other columns or a remark on its
    /// continuity.
    async fn may_skip(
        &self,
        lease: &Lease,
        datasets: &[Arc<Dataset>],
        tables: &[SnapshotTable],
    ) -> Result<Vec<bool>, Error> {
        let is_plain = |((export, dataset), table): ((&Export, &Arc<Dataset>), &SnapshotTable)| {
            export.export_type != ExportType::Full
                && !table.begins()
                && table.report.continuity.is_none()
                && table.report.quiet_deletes == 0
                && export.skip_empty.unwrap_or(dataset.skip_empty)
        };
        let mut may_skip: Vec<_> = lease.exports().zip(datasets).zip(tables).map(is_plain).collect();
        let Some(consumer) = lease.first().consumer.as_ref().filter(|_| may_skip.contains(&true)) else {
            return Ok(vec![false; may_skip.len()]);
        };
        let asked: Vec<_> = (0..may_skip.len()).filter(|at| may_skip[*at]).collect();
        let names: Vec<_> = asked.iter().map(|at| &*lease.exports[*at].export.dataset).collect();
        let signatures: Vec<_> = asked.iter().map(|at| tables[*at].schema.signature()).collect();
        let are_same = self.store.are_signatures_of_last(consumer, &names, &signatures).await?;
        for (at, is_same) in asked.into_iter().zip(are_same) {
            may_skip[at] = is_same;
        }
        Ok(may_skip)
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
        let abort = async {
            for at in 0..lease.exports.len() {
                self.destination.abort(&lease.hidden_file(at)).await?;
            }
            Ok::<_, sink::Error>(())
        };
        let id = lease.id();
        let left_behind = match unless_stopped(shutdown, abort).await {
            Some(aborted) => aborted.err().map(|error| chain(&error)),
            None => Some("the service is shutting down".to_owned()),
        };
        if let Some(error) = left_behind {
            tracing::warn!(event = "draft_left_behind", jobId = %id, error);
        }
        if let Settlement::GiveWay(_) = settlement {
            metrics::gave_way();
        }
        match (left.status, &settlement) {
            (Status::Pending, Settlement::Release) => {
                tracing::info!(event = "export_released", jobId = %id, error = cause);
            }
            (Status::Pending, Settlement::Fail(_)) => {
                let (first, datasets) = (need_full.first().copied(), need_full.len());
                tracing::warn!(event = "export_healed", jobId = %id, dataset = first, datasets, error = cause);
            }
            (Status::Pending, Settlement::Retry(_) | Settlement::RetryLocked(_)) => {
                let (attempt, dataset) = (lease.first().attempt, failed_dataset.filter(|_| lease.exports.len() > 1));
                tracing::warn!(event = "export_retried", jobId = %id, attempt, dataset, error = cause);
            }
            (Status::Pending, Settlement::GiveWay(_)) => {
                tracing::warn!(event = "export_gave_way", jobId = %id, error = cause);
            }
            // The store has already logged the end.
            (_, _) => {}
        }
        AttemptEnd::Otherwise
    }

    async fn committed_after_all(&self, lease: &Lease, shutdown: &CancellationToken) -> AttemptEnd {
        let token = lease.token().as_uuid().to_string();
        let ours = |record: &FileRecord| record.parts.iter().all(|part| part.staged.name.contains(&token));
        // Some exports of a job may be skipped. They have no file.
        for Export { job, dataset, .. } in lease.exports() {
            match self.retry_while_leased(lease, shutdown, || self.store.file(*job, dataset)).await {
                Ok(Some(record)) if ours(&record) => return AttemptEnd::Committed,
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => break,
            }
        }
        tracing::warn!(event = "lease_lost", jobId = %lease.id());
        AttemptEnd::Otherwise
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
            let time = if shutdown.is_cancelled() { Duration::from_secs(5) } else { self.settings.lease };
            match statement().await {
                Err(store::Error::Unavailable(cause) | store::Error::LockConflict(cause)) if begun.elapsed() < time => {
                    let (id, error) = (lease.id(), chain(&cause));
                    if let Some(times) = self.throttle.should_log(format!("{id}: {error}")) {
                        tracing::warn!(event = "database_unavailable", jobId = %id, error, times);
                    }
                    tokio::time::sleep(PAUSE.min(self.call_timeout())).await;
                }
                done => return done,
            }
        }
    }

    fn call_timeout(&self) -> Duration {
        lease::call_timeout(self.settings.lease)
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

/// Puts a staged export into its place.
fn collect(exports: &mut [Exported], staged: Option<(usize, StagedTask)>) -> Result<(), Failed> {
    let Some((at, staged)) = staged else { return Ok(()) };
    let staged = staged.map_err(pipeline::Error::Panicked).and_then(|staged| staged);
    exports[at] = staged.map_err(Failed::at(at))?;
    Ok(())
}

/// The result of a task that stages an export.
type StagedTask = Result<Result<Exported, pipeline::Error>, tokio::task::JoinError>;
