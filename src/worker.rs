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
mod restart;
mod shutdown;
mod traced;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::dataset::current::CurrentCatalog;
use crate::dataset::{Capture, CellMax, Dataset};
use crate::failpoint;
use crate::file::name::FileName;
use crate::file::{Exported, FileRecord};
use crate::job::marker::Marker;
use crate::job::{ExportType, Job, JobId, Progress, Status};
use crate::manifest::Manifest;
use crate::pipeline;
use crate::publisher::{self, Publisher};
use crate::sink::{Destination, Drafts, Limited, MarkerFile};
use crate::source::{
    Source,
    connections::ExportConnections,
    snapshot::{Purpose, Snapshot},
};
use crate::store::{
    self, Store,
    commit::{CommitInput, Committed, SkippedExport},
    lease::{self, Lease, Renewal},
    manifests::uncommitted,
    queue::{Claim, Claimant, Settlement},
};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::spans::{self, Span};
use crate::telemetry::{chain, job_event};
use crate::worker::error::Error;
use crate::worker::heartbeat::{Heartbeat, Stop};
use crate::worker::restart::restart_on_panic;
use crate::worker::shutdown::unless_stopped;

/// The pause after a database error.
const PAUSE: Duration = Duration::from_secs(1);

/// The time after which an idle worker closes its connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time limit of a shutdown if the database does not respond. Other workers take over the jobs when their leases
/// expire.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// The worker's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The number of concurrent exports in this process.
    pub workers: u32,
    /// The duration of a lease. A job whose lease is not renewed for this long can be taken over.
    pub lease: Duration,
    /// The maximum size of a value.
    pub cell_max: CellMax,
    /// The compression level of files. If `None`, each codec uses its default.
    pub compression_level: Option<u8>,
    /// The settings for publishing files.
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
    /// The value of `exports.lease_owner`. It is informational and is not used for fencing.
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

/// A job that this worker has claimed.
struct ClaimedJob {
    lease: Lease,
    /// The dataset as the catalog had it at the claim.
    dataset: Arc<Dataset>,
    connections: ExportConnections,
}

/// An attempt whose file has been written.
struct WrittenAttempt {
    snapshot: Snapshot,
    exported: Exported,
    /// The export in the destination's lane marker at the start of the attempt.
    marker: Option<JobId>,
}

/// The rows of a commit that is not sent yet.
enum WrittenRows {
    /// They record these files.
    Files(Box<FileRecord>),
    /// They record that there was nothing to export.
    Skipped(SkippedExport),
}

/// The state of the job after a failed attempt.
enum AttemptEnd {
    /// The attempt was committed, and only the response to the commit was lost.
    Committed,
    /// Another worker has the job, or the job was settled as pending, failed or cancelled.
    Otherwise,
}

impl Worker {
    /// Creates a worker. It claims jobs from `store`, reads the datasets of `catalog` from `source` and writes to
    /// `destination`.
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
    ) -> Result<Result<ClaimedJob, bool>, Error> {
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
                let dataset = catalog.get(&lease.job.dataset).expect("jobs of other datasets are not claimed");
                Ok(Ok(ClaimedJob { dataset: Arc::clone(dataset), lease: *lease, connections: ready }))
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
        ClaimedJob { lease, dataset, connections }: ClaimedJob,
        shutdown: &CancellationToken,
    ) -> Option<ExportConnections> {
        let job = &lease.job;
        job_event!(info, job, "export_started", attempt = job.attempt);
        let attempted = self.attempt(&lease, &dataset, connections, shutdown).await;
        let (connections, record) = match attempted.inspect_err(|error| span.fail(chain(error))) {
            // A skipped export has nothing to publish.
            Ok((connections, None)) => return connections,
            Ok((connections, record)) => (connections, record),
            Err(error) => match self.settle(&lease, error, shutdown).await {
                AttemptEnd::Committed => (None, None),
                AttemptEnd::Otherwise => return None,
            },
        };
        failpoint!("worker.committed", None);
        let publisher = self.publisher();
        let publishing = async {
            match record {
                Some(record) => {
                    // A job without a trace got the one of this attempt.
                    let trace = record.trace.or(span.place());
                    publisher.publish(FileRecord { trace, ..record }).await.map(drop)
                }
                None => publisher.publish_job(job.id).await,
            }
        };
        let publishing = tokio::time::timeout(self.settings.lease, publishing);
        let failed = match unless_stopped(shutdown, publishing).await {
            Some(Ok(published)) => published.err().map(|error| chain(&error)),
            Some(Err(_)) => Some("publishing exceeded the time limit".to_owned()),
            None => Some("the service is shutting down".to_owned()),
        };
        if let Some(error) = failed {
            // The job is committed. Maintenance publishes the file as soon as possible.
            tracing::error!(event = "publish_failed", jobId = %job.id, error);
        }
        connections
    }

    /// Runs one attempt: opens a snapshot, writes its rows to a hidden file, syncs the file, and commits the file with
    /// the watermark.
    async fn attempt(
        &self,
        lease: &Lease,
        dataset: &Arc<Dataset>,
        connections: ExportConnections,
        shutdown: &CancellationToken,
    ) -> Result<(Option<ExportConnections>, Option<FileRecord>), Error> {
        let begun = Instant::now();
        failpoint!("worker.claimed");
        let progress = Progress::default();
        let mut heartbeat =
            Heartbeat::start(&self.store, lease, progress.clone(), self.settings.lease, self.cancels.subscribe());
        let export = self.write_file(lease, dataset, connections, &progress);
        let written = tokio::select! {
            biased;
            stop = heartbeat.stopped() => Err(Error::Stopped(stop)),
            () = shutdown.cancelled() => Err(Error::Stopped(Stop::Shutdown)),
            written = export => written,
        };
        // Ended before the commit. Otherwise a renewal would wait for the row lock of the commit, and then report the
        // finished job as lost.
        heartbeat.end().await;
        let WrittenAttempt { mut snapshot, exported, marker } = written?;
        failpoint!("worker.staged");
        // A recent lease needs no extension. The commit itself checks the token and the cancellation.
        if begun.elapsed() > lease::interval(self.settings.lease) {
            let extend = || self.store.extend(lease, self.settings.lease, progress.read());
            match self.retry_while_leased(lease, shutdown, extend).await? {
                Renewal::Held => {}
                Renewal::CancelAsked => return Err(Error::Stopped(Stop::CancelAsked)),
                Renewal::Lost => return Err(Error::Stopped(Stop::LeaseLost)),
            }
        }
        failpoint!("worker.extended");
        // A commit may wait for locks as long as the lease lasts. After that, it is abandoned.
        let time = self.settings.lease;
        let committed = async {
            let commit = self.commit(lease, &mut snapshot, &exported, marker);
            let written = tokio::time::timeout(time, commit).await.unwrap_or(Err(Error::Stopped(Stop::Silence)))?;
            failpoint!("worker.commit");
            let connections = snapshot.commit(time).await?;
            let record = match written {
                WrittenRows::Files(record) => Some(*record),
                WrittenRows::Skipped(skipped) => {
                    self.store.announce_skipped(skipped)?;
                    None
                }
            };
            Ok((connections, record))
        };
        spans::step("commit", committed).await
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(&self.store, &self.destination, &self.settings.publisher, self.settings.lease)
    }

    /// Writes the rows of the commit.
    async fn commit(
        &self,
        lease: &Lease,
        snapshot: &mut Snapshot,
        exported: &Exported,
        marker: Option<JobId>,
    ) -> Result<WrittenRows, Error> {
        let schema = snapshot.schema.narrowed(&lease.job.selection);
        let mut found = CommitInput {
            position: snapshot.position.clone(),
            new_position: snapshot.new_position.clone(),
            report: snapshot.report.clone(),
            signature: schema.signature(),
            columns: schema.saved_columns(lease.job.export_type, snapshot.new_position.snapshot.as_deref()),
            marker,
            manifest: None,
        };
        let (record, chained) = uncommitted(lease, &found, exported);
        let chained = chained.filter(|_| !exported.parts.is_empty());
        found.manifest = chained
            .zip(lease.link.as_ref())
            .map(|(chained, link)| self.publisher().manifest(&record, link.number, chained));
        let manifest = found.manifest.as_ref().map(Manifest::text);
        let transaction = snapshot.begin_commit(self.settings.lease).await?;
        match self.store.commit(transaction, lease, &found, exported).await? {
            Committed::Done(is_planned) => {
                let manifest = manifest.filter(|_| is_planned);
                Ok(WrittenRows::Files(Box::new(FileRecord { manifest, ..record })))
            }
            Committed::Skipped(skipped) => Ok(WrittenRows::Skipped(skipped)),
            Committed::NotOurs => Err(Error::NotOurs),
            Committed::WatermarkChanged => Err(Error::WatermarkChanged),
        }
    }

    async fn write_file(
        &self,
        lease: &Lease,
        dataset: &Arc<Dataset>,
        connections: ExportConnections,
        progress: &Progress,
    ) -> Result<WrittenAttempt, Error> {
        let job = &lease.job;
        let marker_file = job.lane().map(|lane| MarkerFile::new(&lease.database, lane));
        let marker = match &marker_file {
            Some(file) => self.destination.lane_marker(file).await?,
            None => None,
        };
        let name = FileName {
            dataset: job.dataset.clone(),
            consumer: job.consumer.clone(),
            name: job.output_filename.clone(),
            encoding: job.encoding,
        };
        let drafts = Drafts::new(&self.destination, lease.hidden_file(), name);
        if let (Some(file), true) = (marker_file, marker.as_ref().is_some_and(Marker::is_unreadable)) {
            tracing::warn!(event = "marker_unreadable", jobId = %job.id, file = file.name());
        }
        // Check for a full disk before the snapshot is opened, because the snapshot delays vacuum. The draft is created
        // only after that.
        self.destination.require_room().await?;
        let (consumer, export_type) = (job.consumer.as_ref(), job.export_type);
        let purpose = Purpose { consumer, export_type, job: Some(job.id), marker: marker.as_ref() };
        let opening = connections.open(&purpose, dataset, self.settings.lease);
        let mut snapshot = spans::step("open", opening).await?;
        if lease.is_trial {
            self.store.table_opened(lease).await?;
        }
        failpoint!("worker.opened");
        // Late rows exist only with triggers and an `updated_at` column.
        let exact = dataset.capture == Capture::Triggers && dataset.updated_at.is_some();
        let since = snapshot.position.since.filter(|_| exact);
        let Settings { cell_max, compression_level, .. } = self.settings;
        let max_file_bytes = job.max_file_bytes.or(dataset.max_file_bytes);
        let skips_empty = self.may_skip(job, dataset, &snapshot).await?;
        let spec =
            pipeline::ExportSpec { job, since, cell_max, max_file_bytes, compression_level, skips_empty, progress };
        let (leader, rows) = snapshot.split();
        let mut exported = tokio::select! {
            lost = leader.keep_alive(lease::interval(self.settings.lease), self.settings.lease) => return Err(lost.into()),
            exported = spans::step("stream", pipeline::run(rows, &spec, &drafts)) => exported?,
        };
        let taken_at = snapshot.new_position.taken_at;
        if dataset.updated_at.is_none() {
            exported.last_updated_at = Some(taken_at).filter(|_| exported.rows > 0);
        } else if dataset.capture != Capture::Triggers {
            // A row with a future time would otherwise hide all later changes up to that time.
            exported.last_updated_at = exported.last_updated_at.map(|time| time.min(taken_at));
        }
        Ok(WrittenAttempt { snapshot, exported, marker: marker.map(|marker| marker.job) })
    }

    /// Returns true if a job is to make no file if it finds no rows. An export that has something else to tell makes a
    /// file all the same: the first one of a lane, and one with other columns or a remark on its continuity.
    async fn may_skip(&self, job: &Job, dataset: &Dataset, snapshot: &Snapshot) -> Result<bool, Error> {
        let Some(lane) = job.lane() else { return Ok(false) };
        let is_plain = job.export_type != ExportType::Full
            && snapshot.report.continuity.is_none()
            && snapshot.report.quiet_deletes == 0;
        if !is_plain || !job.skip_empty.unwrap_or(dataset.skip_empty) {
            return Ok(false);
        }
        Ok(self.store.is_signature_of_last(lane, &snapshot.schema.narrowed(&job.selection).signature()).await?)
    }

    /// Settles a job after its attempt ended with `error`. If only the response to the commit was lost, detects that
    /// the job is committed.
    async fn settle(&self, lease: &Lease, error: Error, shutdown: &CancellationToken) -> AttemptEnd {
        let job = &lease.job;
        let (settlement, cause) = (error.settlement(), chain(&error));
        let settled = self.retry_while_leased(lease, shutdown, || self.store.settle(lease, &settlement, &cause)).await;
        let left = match settled {
            Ok(Some(transition)) => transition.job,
            Ok(None) => return self.committed_after_all(lease, shutdown).await,
            Err(failed) => {
                // The lease expires, another worker takes over the job, and maintenance removes the file.
                tracing::error!(event = "settle_failed", jobId = %job.id, error = cause, cause = chain(&failed));
                return AttemptEnd::Otherwise;
            }
        };
        // This attempt can no longer be committed, so its file can be removed.
        let (id, hidden) = (job.id, lease.hidden_file());
        let left_behind = match unless_stopped(shutdown, self.destination.abort(&hidden)).await {
            Some(aborted) => aborted.err().map(|error| chain(&error)),
            None => Some("the service is shutting down".to_owned()),
        };
        if let Some(error) = left_behind {
            tracing::warn!(event = "draft_left_behind", jobId = %id, error);
        }
        match (left.status, &settlement) {
            (Status::Pending, Settlement::Release) => tracing::info!(event = "export_released", jobId = %id),
            (Status::Pending, Settlement::Retry(_) | Settlement::RetryLocked(_) | Settlement::Fail(_)) => {
                tracing::warn!(event = "export_retried", jobId = %id, attempt = job.attempt, error = cause);
            }
            // The store has already logged the end.
            (_, _) => {}
        }
        AttemptEnd::Otherwise
    }

    async fn committed_after_all(&self, lease: &Lease, shutdown: &CancellationToken) -> AttemptEnd {
        let id = lease.job.id;
        let token = lease.token().as_uuid().to_string();
        let ours = |record: &FileRecord| record.parts.iter().all(|part| part.staged.name.contains(&token));
        match self.retry_while_leased(lease, shutdown, || self.store.file(id)).await {
            Ok(record) if record.as_ref().is_some_and(ours) => AttemptEnd::Committed,
            _ => {
                tracing::warn!(event = "lease_lost", jobId = %id);
                AttemptEnd::Otherwise
            }
        }
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
                    let (id, error) = (lease.job.id, chain(&cause));
                    if let Some(times) = self.throttle.should_log(format!("{id}: {error}")) {
                        tracing::warn!(event = "database_unavailable", jobId = %id, error, times);
                    }
                    tokio::time::sleep(PAUSE.min(self.call_timeout())).await;
                }
                done => return done,
            }
        }
    }

    /// Returns the time limit of a statement. It is short enough to allow another attempt within a lease.
    fn call_timeout(&self) -> Duration {
        lease::call_timeout(self.settings.lease)
    }
}
