//! What somebody has to do whoever's job it was: give committed files their names, take over jobs of vanished workers, remove
//! what they left in the folder. Every process does it; each step is safe to do twice.

use std::collections::HashSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::sink::Published;
use crate::store::jobs::FilePlace;
use crate::worker::{Error, Worker, chain, heartbeat};

/// Tells the workers of every hint, until `shutdown`. Without a connection it tries again; the workers poll meanwhile.
pub(crate) async fn listen(worker: Worker, shutdown: CancellationToken) {
    let listening = async {
        loop {
            match worker.store.listen().await {
                Ok(mut hints) => {
                    while hints.next().await.is_ok() {
                        worker.hint.notify_waiters();
                    }
                }
                Err(error) => tracing::warn!(event = "listen_failed", error = chain(&error)),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! { () = shutdown.cancelled() => {}, () = listening => {} }
}

/// Does the rounds until `shutdown`.
pub(crate) async fn run(worker: Worker, shutdown: CancellationToken) {
    let pause = heartbeat::interval(worker.settings.lease);
    let rounds = async {
        loop {
            if let Err(error) = round(&worker).await {
                tracing::warn!(event = "upkeep_failed", error = chain(&error));
            }
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! { () = shutdown.cancelled() => {}, () = rounds => {} }
}

async fn round(worker: &Worker) -> Result<(), Error> {
    for (job, status) in worker.store.reap().await? {
        tracing::warn!(event = "export_taken_over", jobId = %job, status = %status);
        worker.hint.notify_waiters();
    }
    let store = worker.on_folder(|folder| folder.store()).await?;
    for place in worker.store.unpublished(store).await? {
        let job = place.job;
        if let Err(error) = publish(worker, place).await {
            tracing::error!(event = "publish_failed", jobId = %job, error = chain(&error));
        }
    }
    sweep(worker).await
}

/// Gives a committed file its final name and records that. Safe to be done by several processes at once and after a crash at
/// any point.
pub(crate) async fn publish(worker: &Worker, mut place: FilePlace) -> Result<(), Error> {
    loop {
        let (staged, name, identity) = (place.staged_name.clone(), place.output_filename.clone(), place.identity);
        match worker.on_folder(move |folder| folder.publish(&staged, &name, &identity)).await? {
            Published::Done => return Ok(worker.store.published(&place).await?),
            Published::Taken => worker.store.rename_output(&place).await?,
            Published::Gone => {}
        }
        let now = worker.store.file_place(place.job).await?;
        match now {
            Some(now) if now.output_filename != place.output_filename => place = now,
            // Gone, and nobody gave it another name: it was removed. A download will say so.
            Some(now) => return Ok(worker.store.published(&now).await?),
            None => return Ok(()),
        }
    }
}

/// Removes the hidden files of attempts that ended.
async fn sweep(worker: &Worker) -> Result<(), Error> {
    // Listed before the question, so that an attempt which begins in between isn't among them.
    let attempts = worker.on_folder(|folder| folder.hidden_files()).await?;
    if attempts.is_empty() {
        return Ok(());
    }
    let needed: HashSet<_> = worker.store.needing_their_file(&attempts).await?.into_iter().collect();
    for (job, token) in attempts.into_iter().filter(|attempt| !needed.contains(attempt)) {
        tracing::info!(event = "draft_swept", jobId = %job);
        worker.on_folder(move |folder| folder.remove_hidden(job, token)).await?;
    }
    Ok(())
}
