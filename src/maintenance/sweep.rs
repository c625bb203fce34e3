//! Removes the hidden files of attempts that ended.

use std::time::Duration;

use crate::maintenance::{Error, Maintenance, Task};
use crate::sink::Folder;
use crate::sink::access::FolderAccess;
use crate::store::queue::EndedAttempt;

/// A file of a job that the database doesn't know is swept when it was not written to for so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

pub(super) struct Sweep {
    maintenance: Maintenance,
    folder: FolderAccess,
}

impl Sweep {
    pub(super) fn new(maintenance: &Maintenance) -> Sweep {
        Sweep { maintenance: maintenance.clone(), folder: FolderAccess::new(&maintenance.folder) }
    }
}

impl Task for Sweep {
    const NAME: &'static str = "sweep";

    async fn round(&mut self) -> Result<(), Error> {
        let Sweep { maintenance, folder } = self;
        // Listed before the question, so that an attempt which begins in between isn't among them.
        let hidden = folder.run(|folder| folder.hidden_files()).await?;
        if hidden.is_empty() {
            return Ok(());
        }
        let mut outcome = Ok(());
        for EndedAttempt { file, is_known } in
            maintenance.with_timeout(maintenance.store.ended_attempts(hidden)).await?
        {
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
                Err(error) => outcome = Err(error.into()),
            }
        }
        outcome
    }
    async fn woken(&self) {
        self.maintenance.swept.notified().await;
    }
}
