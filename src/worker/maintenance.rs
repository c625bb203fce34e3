//! What has to be done whosever job it was: take over jobs of vanished workers, give committed files their names, remove what is left
//! in the folder or past its retention, purge the change log. Every process does all of it; each step is safe to do twice.
//!
//! Each is a task of its own, so that a folder that hangs or a file that can't be removed delays nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::file::FileRecord;
use crate::job::{JobId, Retention};
use crate::sink::Folder;
use crate::source::purge::PURGE_ROWS;
use crate::store::Notification;
use crate::store::queue::EndedAttempt;
use crate::store::retention::Of;
use crate::store::transitions::Transition;
use crate::telemetry::chain;
use crate::telemetry::metrics;
use crate::worker::publish::{FolderAccess, LOST_AFTER, Publication, give_up, publish};
use crate::worker::{Error, Settings, Worker, heartbeat};

/// Reading the whole folder costs more than all the rest, and what a crash left there is in nobody's way.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// A file of a job that the database doesn't know is swept when nobody has written it for so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// The log grows slowly beside what a purge takes away, and a statement in ten seconds is nothing.
const PURGE_EVERY: Duration = Duration::from_secs(10);

/// How long a round of a task may take before it begins anew. A purging statement may take a minute.
const ROUND_TIMEOUT: Duration = Duration::from_secs(120);

/// The same trouble is logged so often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Says the same of the same thing once a minute.
#[derive(Default)]
struct Complaints(HashMap<String, Instant>);

impl Complaints {
    fn is_new(&mut self, complaint: String) -> bool {
        self.0.retain(|_, said| said.elapsed() < COMPLAIN_EVERY);
        match self.0.entry(complaint) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(Instant::now());
                true
            }
        }
    }
}

/// What is done again and again.
trait Task: Send {
    /// What it is called in the log.
    const NAME: &'static str;

    /// Does it once. One that is given up for taking too long is begun anew.
    fn round(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Does a task until `shutdown`, whatever becomes of it, with a rest of `period` in between, which `wake` may end.
async fn every<T: Task>(period: Duration, wake: &Notify, mut task: T, shutdown: CancellationToken) {
    let mut complaints = Complaints::default();
    while !shutdown.is_cancelled() {
        let done = tokio::select! {
            () = shutdown.cancelled() => return,
            done = tokio::time::timeout(ROUND_TIMEOUT, task.round()) => done,
        };
        let failed = match done {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(chain(&error)),
            Err(_) => Some("it takes too long".to_owned()),
        };
        if let Some(error) = failed
            && complaints.is_new(error.clone())
        {
            tracing::warn!(event = "maintenance_failed", task = T::NAME, error);
        }
        tokio::select! { () = shutdown.cancelled() => {}, () = tokio::time::sleep(period) => {}, () = wake.notified() => {} }
    }
}

/// Passes hints on, until `shutdown`. Without a connection it tries again; the workers poll meanwhile.
pub(crate) async fn listen(worker: Worker, shutdown: CancellationToken) {
    let listening = async {
        let mut complaints = Complaints::default();
        loop {
            if let Err(error) = pass_hints_on(&worker).await
                && complaints.is_new(chain(&error))
            {
                tracing::warn!(event = "listen_failed", error = chain(&error));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! { () = shutdown.cancelled() => {}, () = listening => {} }
}

async fn pass_hints_on(worker: &Worker) -> Result<(), Error> {
    let mut hints = worker.with_timeout(worker.store.listen()).await?;
    loop {
        match hints.next().await? {
            Notification::Work => worker.work_hint.notify_waiters(),
            // Without a running export nobody listens.
            Notification::Cancel(job) => drop(worker.cancel_hints.send(job)),
        }
    }
}

/// Takes the jobs of vanished workers from them.
pub(crate) async fn reap(worker: Worker, shutdown: CancellationToken) {
    every(heartbeat::interval(worker.settings.lease), &Notify::new(), Reap { worker }, shutdown).await;
}

struct Reap {
    worker: Worker,
}

impl Task for Reap {
    const NAME: &'static str = "reap";

    async fn round(&mut self) -> Result<(), Error> {
        let Reap { worker } = self;
        worker.with_timeout(worker.store.make_good_a_clock_set_back(worker.settings.lease)).await?;
        for Transition { job, .. } in worker.with_timeout(worker.store.reap()).await? {
            tracing::warn!(event = "export_taken_over", jobId = %job.id, status = %job.status);
            metrics::lease_taken_over();
            worker.work_hint.notify_waiters();
            worker.sweep_hint.notify_one();
        }
        Ok(())
    }
}

/// Says again and again that a process with this folder lives: also while a look through the whole folder takes long.
pub(crate) async fn announce_on(worker: Worker, shutdown: CancellationToken) {
    let (folder, period) = (FolderAccess::new(&worker), heartbeat::interval(worker.settings.lease));
    every(period, &Notify::new(), Announce { worker, folder }, shutdown).await;
}

struct Announce {
    worker: Worker,
    folder: FolderAccess,
}

impl Task for Announce {
    const NAME: &'static str = "announce";

    async fn round(&mut self) -> Result<(), Error> {
        announce(&self.worker, &self.folder).await.map(drop)
    }
}

/// Gives committed files their names, and up those that are nowhere to be found.
pub(crate) async fn publish_all(worker: Worker, shutdown: CancellationToken) {
    let (folder, period) = (FolderAccess::new(&worker), heartbeat::interval(worker.settings.lease));
    let (missing, complaints) = Default::default();
    every(period, &Notify::new(), Publish { worker, folder, missing, complaints }, shutdown).await;
}

struct Publish {
    worker: Worker,
    folder: FolderAccess,
    /// Since when a job's file is missing.
    missing: HashMap<JobId, Instant>,
    complaints: Complaints,
}

impl Task for Publish {
    const NAME: &'static str = "publish";

    async fn round(&mut self) -> Result<(), Error> {
        let Publish { worker, folder, missing, complaints } = self;
        let store = folder.run(|folder| folder.destination_id()).await?;
        let unpublished = worker.with_timeout(worker.store.unpublished(store)).await?;
        missing.retain(|job, _| unpublished.iter().any(|record| record.job == *job));
        for record in unpublished {
            let job = record.job;
            let outcome = if record.is_own {
                match publish(worker, folder, record).await {
                    Ok(Publication::Done) => Ok(()),
                    Ok(Publication::Missing(record)) => look_again(worker, missing, &record).await,
                    Err(error) => {
                        // No proof of anything: a folder that failed may have the file.
                        missing.remove(&job);
                        Err(error)
                    }
                }
            } else {
                // Nobody here may name it, so nobody shall wait for it.
                give_up(worker, &record).await
            };
            if let Err(error) = outcome
                && complaints.is_new(format!("{job} {}", chain(&error)))
            {
                tracing::error!(event = "publish_failed", jobId = %job, error = chain(&error));
            }
        }
        Ok(())
    }
}

/// Gives a job up whose file was missing at each look for a while.
async fn look_again(worker: &Worker, missing: &mut HashMap<JobId, Instant>, record: &FileRecord) -> Result<(), Error> {
    let first = *missing.entry(record.job).or_insert_with(|| {
        tracing::warn!(event = "staged_file_missing", jobId = %record.job, file = record.staged.name);
        Instant::now()
    });
    if first.elapsed() > LOST_AFTER { give_up(worker, record).await } else { Ok(()) }
}

/// Says that a process with this folder lives; which it is.
pub(crate) async fn announce(worker: &Worker, folder: &FolderAccess) -> Result<uuid::Uuid, Error> {
    let store = folder.run(|folder| folder.destination_id()).await?;
    // Says what it is where writing would only take too long.
    worker.with_timeout(worker.store.ping()).await?;
    worker.with_timeout(worker.store.seen(store)).await?;
    Ok(store)
}

/// Removes the hidden files of attempts that ended.
pub(crate) async fn sweep(worker: Worker, shutdown: CancellationToken) {
    let (folder, hint) = (FolderAccess::new(&worker), Arc::clone(&worker.sweep_hint));
    every(SWEEP_EVERY, &hint, Sweep { worker, folder }, shutdown).await;
}

struct Sweep {
    worker: Worker,
    folder: FolderAccess,
}

impl Task for Sweep {
    const NAME: &'static str = "sweep";

    async fn round(&mut self) -> Result<(), Error> {
        let Sweep { worker, folder } = self;
        // Listed before the question, so that an attempt which begins in between isn't among them.
        let hidden = folder.run(|folder| folder.hidden_files()).await?;
        if hidden.is_empty() {
            return Ok(());
        }
        let mut outcome = Ok(());
        for EndedAttempt { file, is_known } in worker.with_timeout(worker.store.ended_attempts(hidden)).await? {
            let job = file.job;
            let sweep = move |folder: &Folder| {
                let is_nobodys = is_known || folder.is_abandoned(&file, ABANDONED_AFTER)?;
                if is_nobodys {
                    folder.remove_hidden(&file)?;
                }
                Ok(is_nobodys)
            };
            match folder.run(sweep).await {
                Ok(true) => tracing::info!(event = "draft_swept", jobId = %job),
                Ok(false) => {}
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }
}

/// Removes files and forgets jobs past what an operator wants kept.
pub(crate) async fn retain(worker: Worker, shutdown: CancellationToken) {
    let folder = FolderAccess::new(&worker);
    every(SWEEP_EVERY, &Notify::new(), Retain { worker, folder }, shutdown).await;
}

struct Retain {
    worker: Worker,
    folder: FolderAccess,
}

impl Task for Retain {
    const NAME: &'static str = "retain";

    async fn round(&mut self) -> Result<(), Error> {
        let Retain { worker, folder } = self;
        let Settings { retain_files, retain_jobs, .. } = worker.settings;
        let mut outcome = Ok(());
        for (retention, of) in [(retain_files, Of::Files), (retain_jobs, Of::Jobs)] {
            if retention != Retention::default() {
                let store = folder.run(|folder| folder.destination_id()).await?;
                for record in worker.with_timeout(worker.store.files_past(&retention, of, store)).await? {
                    // One that can't be removed keeps no other one.
                    if let Err(error) = remove(worker, folder, record).await {
                        outcome = Err(error);
                    }
                }
            }
        }
        if retain_jobs != Retention::default() {
            let jobs = worker.with_timeout(worker.store.forget_jobs_past(&retain_jobs)).await?;
            if jobs > 0 {
                tracing::info!(event = "jobs_forgotten", jobs);
            }
        }
        worker.with_timeout(worker.store.forget_lanes()).await?;
        worker.with_timeout(worker.store.forget_stores()).await?;
        outcome
    }
}

async fn remove(worker: &Worker, folder: &FolderAccess, record: FileRecord) -> Result<(), Error> {
    let (job, is_own, name) = (record.job, record.is_own, record.name.clone());
    if is_own {
        folder.run(move |folder| folder.remove(&record.staged, &record.name)).await?;
    }
    // Another database's file stays where it is; here its job is forgotten all the same.
    worker.with_timeout(worker.store.file_removed(job)).await?;
    if is_own {
        tracing::info!(event = "file_removed", jobId = %job, file = name);
    }
    Ok(())
}

/// Purges the change log.
pub(crate) async fn purge(worker: Worker, shutdown: CancellationToken) {
    every(PURGE_EVERY, &Notify::new(), Purge { worker }, shutdown).await;
}

struct Purge {
    worker: Worker,
}

impl Task for Purge {
    const NAME: &'static str = "purge";

    async fn round(&mut self) -> Result<(), Error> {
        let Purge { worker } = self;
        while worker.source.purge(&worker.settings.log_caps).await? >= PURGE_ROWS {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_trouble_is_told_once() {
        let mut complaints = Complaints::default();
        let told = ["a", "b", "a", "b"].map(|what| complaints.is_new(what.to_owned()));
        assert_eq!(told, [true, true, false, false]);
    }
}
