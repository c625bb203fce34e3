//! What somebody has to do whoever's job it was: give committed files their names, take over jobs of vanished workers, remove
//! what they left in the folder. Every process does it; each step is safe to do twice.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::job::file::FileIdentity;
use crate::job::{FailureCode, Retention, Status};
use crate::sink::Published;
use crate::source::purge::PURGE_ROWS;
use crate::store::Hint;
use crate::store::files::FilePlace;
use crate::store::queue::Reaped;
use crate::store::retention::Of;
use crate::telemetry::chain;
use crate::telemetry::metrics::{self, Completed, Kind};
use crate::worker::{Error, Settings, Worker, heartbeat};

/// Reading the whole folder costs more than the rest of a round, and what a crash left there is in nobody's way.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// The log grows slowly beside what a purge takes away, and a statement in ten seconds is nothing.
const PURGE_EVERY: Duration = Duration::from_secs(10);

/// Passes hints on, until `shutdown`. Without a connection it tries again; the workers poll meanwhile.
pub(crate) async fn listen(worker: Worker, shutdown: CancellationToken) {
    let listening = async {
        loop {
            if let Err(error) = pass_hints_on(&worker).await {
                tracing::warn!(event = "listen_failed", error = chain(&error));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! { () = shutdown.cancelled() => {}, () = listening => {} }
}

async fn pass_hints_on(worker: &Worker) -> Result<(), Error> {
    let mut hints = worker.within(worker.store.listen()).await?;
    loop {
        match hints.next().await? {
            Hint::Work => worker.work_hint.notify_waiters(),
            // Without a running export nobody listens.
            Hint::Cancel(job) => drop(worker.cancel_hints.send(job)),
        }
    }
}

/// Does the rounds until `shutdown`.
pub(crate) async fn run(worker: Worker, shutdown: CancellationToken) {
    let pause = heartbeat::interval(worker.settings.lease);
    let rounds = async {
        let mut swept = None;
        loop {
            if let Err(error) = round(&worker, &mut swept).await {
                tracing::warn!(event = "upkeep_failed", error = chain(&error));
            }
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! { () = shutdown.cancelled() => {}, () = rounds => {} }
}

/// Purges the change log until `shutdown`.
pub(crate) async fn purge(worker: Worker, shutdown: CancellationToken) {
    let purging = async {
        loop {
            match worker.source.purge(&worker.settings.log_caps).await {
                Ok(rows) if rows >= PURGE_ROWS => continue,
                Ok(_) => {}
                Err(error) => tracing::warn!(event = "purge_failed", error = chain(&error)),
            }
            tokio::time::sleep(PURGE_EVERY).await;
        }
    };
    tokio::select! { () = shutdown.cancelled() => {}, () = purging => {} }
}

async fn round(worker: &Worker, swept: &mut Option<Instant>) -> Result<(), Error> {
    for Reaped { job, dataset, export_type, status } in worker.within(worker.store.reap()).await? {
        tracing::warn!(event = "export_taken_over", jobId = %job, status = %status);
        metrics::lease_taken_over();
        let kind = Kind { dataset: &dataset, export_type: export_type.as_str() };
        if status.is_terminal() {
            metrics::job_ended(kind, status.as_str());
        }
        if status == Status::Failed {
            metrics::job_failed(kind, FailureCode::AttemptsExhausted.as_str());
            tracing::error!(event = "export_failed", jobId = %job, error = %FailureCode::AttemptsExhausted);
        }
        worker.work_hint.notify_waiters();
        *swept = None;
    }
    let store = announce(worker).await?;
    for place in worker.within(worker.store.unpublished(store)).await? {
        let job = place.job;
        if let Err(error) = publish(worker, place).await {
            tracing::error!(event = "publish_failed", jobId = %job, error = chain(&error));
        }
    }
    if swept.is_none_or(|at| at.elapsed() > SWEEP_EVERY) {
        sweep(worker).await?;
        retain(worker, store).await?;
        *swept = Some(Instant::now());
    }
    Ok(())
}

/// Says that a process with this folder lives; which it is.
pub(crate) async fn announce(worker: &Worker) -> Result<Uuid, Error> {
    let store = worker.on_folder(|folder| folder.store()).await?;
    worker.within(worker.store.seen(store)).await?;
    Ok(store)
}

/// Gives a committed file its final name and records that. Safe to be done by several processes at once and after a crash at
/// any point.
pub(crate) async fn publish(worker: &Worker, mut place: FilePlace) -> Result<(), Error> {
    loop {
        let (staged, name, identity) = (place.staged_name.clone(), place.output_filename.clone(), place.identity);
        match worker.on_folder(move |folder| folder.publish(&staged, &name, &identity)).await? {
            Published::Done => return record(worker, &place).await,
            Published::Taken => worker.within(worker.store.rename_output(&place)).await?,
            Published::Gone => {}
        }
        match worker.within(worker.store.file_place(place.job)).await? {
            Some(now) if now.output_filename != place.output_filename => place = now,
            Some(now) => {
                // Nobody gave it another name, so somebody removed it. A download will say so.
                tracing::error!(event = "staged_file_gone", jobId = %now.job, file = now.staged_name);
                return record(worker, &now).await;
            }
            None => return Ok(()),
        }
    }
}

async fn record(worker: &Worker, place: &FilePlace) -> Result<(), Error> {
    if worker.within(worker.store.published(place)).await? {
        // Here, since of all processes that may finish a job one gets here.
        let FilePlace { rows, identity: FileIdentity { size: bytes, .. }, late_rows, seconds, .. } = *place;
        let kind = Kind { dataset: &place.dataset, export_type: place.export_type.as_str() };
        metrics::job_ended(kind, Status::Completed.as_str());
        metrics::job_completed(kind, Completed { rows, bytes, late_rows, seconds });
        tracing::info!(
            event = "export_completed",
            jobId = %place.job,
            rowsExported = place.rows,
            durationSeconds = place.seconds,
        );
    }
    Ok(())
}

/// Removes files and forgets jobs past what an operator wants kept.
async fn retain(worker: &Worker, store: Uuid) -> Result<(), Error> {
    let Settings { retain_files, retain_jobs, .. } = &worker.settings;
    let mut files = Vec::new();
    for (retention, of) in [(retain_files, Of::Files), (retain_jobs, Of::Jobs)] {
        if *retention != Retention::default() {
            files.extend(worker.within(worker.store.files_past(retention, of, store)).await?);
        }
    }
    for place in files {
        let (job, name) = (place.job, place.output_filename.clone());
        worker.on_folder(move |folder| folder.remove(&place.output_filename, &place.identity)).await?;
        worker.within(worker.store.file_removed(job)).await?;
        tracing::info!(event = "file_removed", jobId = %job, file = name);
    }
    if *retain_jobs != Retention::default() {
        let jobs = worker.within(worker.store.forget_jobs_past(retain_jobs)).await?;
        if jobs > 0 {
            tracing::info!(event = "jobs_forgotten", jobs);
        }
    }
    Ok(())
}

/// Removes the hidden files of attempts that ended.
async fn sweep(worker: &Worker) -> Result<(), Error> {
    // Listed before the question, so that an attempt which begins in between isn't among them.
    let attempts = worker.on_folder(|folder| folder.hidden_files()).await?;
    if attempts.is_empty() {
        return Ok(());
    }
    for (job, token) in worker.within(worker.store.ended_attempts(&attempts)).await? {
        tracing::info!(event = "draft_swept", jobId = %job);
        worker.on_folder(move |folder| folder.remove_hidden(job, token)).await?;
    }
    Ok(())
}
