//! The files of exports, as clients have them.

use tokio::io::AsyncRead;

use crate::file::FileRecord;
use crate::job::{JobId, Status};
use crate::service::deadline::with_timeout;
use crate::service::{Error, Service};
use crate::sink;
use crate::telemetry::{chain, job_event};

/// A committed file, open: the very one that was exported.
#[derive(Debug)]
pub struct OpenFile {
    file: sink::PublishedFile,
    /// What is recorded of it.
    pub record: FileRecord,
}

impl OpenFile {
    /// `length` bytes from `from` on.
    ///
    /// # Errors
    /// If the file can't be read there.
    pub async fn part(self, from: u64, length: u64) -> Result<impl AsyncRead, Error> {
        Ok(self.file.part(from, length).await?)
    }
}

impl Service {
    /// Opens the file of a completed job.
    ///
    /// # Errors
    /// If it has none, or it is not what was exported, or not here.
    pub async fn open_file(&self, id: JobId) -> Result<OpenFile, Error> {
        let record = match with_timeout(self.store.file(id)).await? {
            Some(record) if record.is_published => record,
            Some(_) => return Err(Error::NoFile(Status::Processing)),
            None => return Err(Error::NoFile(self.job(id).await?.status)),
        };
        let file = self.destination.open(&record).await?.ok_or(Error::FileGone)?;
        Ok(OpenFile { file, record })
    }

    /// Removes the file of a job that has ended, if it has one. The job stays.
    ///
    /// # Errors
    /// If the job is open, or its file on another host or of another database.
    pub async fn remove_file(&self, id: JobId) -> Result<(), Error> {
        let job = self.job(id).await?;
        if !job.status.is_terminal() {
            return Err(Error::Open(job.status));
        }
        let Some(record) = with_timeout(self.store.file(id)).await? else { return Ok(()) };
        if !record.is_own {
            return Err(Error::FileOfOtherDatabase);
        }
        self.destination.remove(&record).await?;
        with_timeout(self.store.file_removed(id)).await?;
        job_event!(info, job, "file_removed", file = record.name);
        Ok(())
    }

    /// Gives up a job that was committed a while ago and whose file has no name yet: it fails, and its file
    /// goes.
    ///
    /// # Errors
    /// If the job is open otherwise, or is to get its name in this moment.
    pub async fn give_up(&self, id: JobId) -> Result<(), Error> {
        let job = self.job(id).await?;
        let Some(record) = with_timeout(self.store.file(id)).await? else { return Err(Error::Open(job.status)) };
        if with_timeout(self.store.give_up(&record)).await?.is_none() {
            return Err(Error::Open(job.status));
        }
        if !record.is_own {
            return Ok(());
        }
        match self.destination.discard(&record).await {
            // The other destination's sweep removes it, should that destination ever be back.
            Ok(()) | Err(sink::Error::Elsewhere) => {}
            Err(error) => tracing::warn!(event = "file_left_behind", jobId = %id, error = chain(&error)),
        }
        Ok(())
    }

    /// Whether the destination can take a file.
    pub(super) async fn room(&self) -> Result<(), Error> {
        Ok(self.destination.require_room().await?)
    }
}
