//! Removes files and forgets jobs past what an operator wants kept.

use crate::file::FileRecord;
use crate::job::Retention;
use crate::maintenance::{Error, Maintenance, Settings, Task};
use crate::sink::access::FolderAccess;
use crate::store::retention::Retained;

pub(super) struct Retain {
    maintenance: Maintenance,
    folder: FolderAccess,
}

impl Retain {
    pub(super) fn new(maintenance: &Maintenance) -> Retain {
        Retain { maintenance: maintenance.clone(), folder: FolderAccess::new(&maintenance.folder) }
    }
}

impl Task for Retain {
    const NAME: &'static str = "retain";

    async fn round(&mut self) -> Result<(), Error> {
        let Retain { maintenance, folder } = self;
        let Settings { retain_files, retain_jobs, .. } = maintenance.settings;
        let mut outcome = Ok(());
        for (retention, retained) in [(retain_files, Retained::Files), (retain_jobs, Retained::Jobs)] {
            if retention != Retention::default() {
                let destination = folder.run(|folder| folder.destination_id()).await?;
                for record in
                    maintenance.with_timeout(maintenance.store.files_past(&retention, retained, destination)).await?
                {
                    // A file that can't be removed stops no other removal.
                    if let Err(error) = remove(maintenance, folder, record).await {
                        outcome = Err(error);
                    }
                }
            }
        }
        if retain_jobs != Retention::default() {
            let jobs = maintenance.with_timeout(maintenance.store.forget_jobs_past(&retain_jobs)).await?;
            if jobs > 0 {
                tracing::info!(event = "jobs_forgotten", jobs);
            }
        }
        maintenance.with_timeout(maintenance.store.forget_lanes()).await?;
        maintenance.with_timeout(maintenance.store.forget_stores()).await?;
        outcome
    }
}

async fn remove(maintenance: &Maintenance, folder: &FolderAccess, record: FileRecord) -> Result<(), Error> {
    let (job, is_own, name) = (record.job, record.is_own, record.name.clone());
    if is_own {
        folder.run(move |folder| folder.remove(&record.staged, &record.name)).await?;
    }
    // Another database's file stays where it is; this database forgets it all the same.
    maintenance.with_timeout(maintenance.store.file_removed(job)).await?;
    if is_own {
        tracing::info!(event = "file_removed", jobId = %job, file = name);
    }
    Ok(())
}
