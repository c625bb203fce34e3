//! The files of exports, as clients have them.

use std::fs::File;
use std::io::SeekFrom;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};

use crate::file::FileRecord;
use crate::job::{JobId, Status};
use crate::service::deadline::with_timeout;
use crate::service::{CALL_TIMEOUT, Error, Service};
use crate::sink::{self, Folder};
use crate::telemetry::chain;

/// A file has its name within a second of its commit: one that hasn't after so long may be given up.
const UNPUBLISHED_FOR: Duration = Duration::from_secs(10);

/// As much is read ahead for a client; by default tokio would keep up to 2 MiB.
const READ_BYTES: usize = 64 * 1024;

/// Operations on the folder at a time.
pub(super) const FOLDER_TURNS: usize = 16;

/// A committed file, open: the very one that was exported.
#[derive(Debug)]
pub struct OpenFile {
    file: File,
    /// What is recorded of it.
    pub record: FileRecord,
}

impl OpenFile {
    /// `length` bytes from `from` on.
    ///
    /// # Errors
    /// If the file can't be read there.
    pub async fn part(self, from: u64, length: u64) -> Result<impl AsyncRead, Error> {
        let mut file = tokio::fs::File::from_std(self.file);
        file.set_max_buf_size(READ_BYTES);
        file.seek(SeekFrom::Start(from)).await.map_err(sink::Error::from)?;
        Ok(file.take(length))
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
        let wanted = record.clone();
        let opened = self.on_folder(move |folder| {
            if folder.destination_id()? != wanted.staged.destination {
                return Ok(Err(Error::FileOnOtherHost));
            }
            Ok(folder.open(&wanted.staged, &wanted.name)?.ok_or(Error::FileGone))
        });
        Ok(OpenFile { file: opened.await??, record })
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
        let removed = self.on_folder(move |folder| {
            if folder.destination_id()? != record.staged.destination {
                return Ok(Err(Error::FileOnOtherHost));
            }
            Ok(Ok(folder.remove(&record.staged, &record.name)?))
        });
        removed.await??;
        with_timeout(self.store.file_removed(id)).await
    }

    /// Gives up a job that was committed a while ago and whose file has no name yet: it fails, and its file
    /// goes.
    ///
    /// # Errors
    /// If the job is open otherwise, or is to get its name in this moment.
    pub async fn give_up(&self, id: JobId) -> Result<(), Error> {
        let job = self.job(id).await?;
        let Some(record) = with_timeout(self.store.file(id)).await? else { return Err(Error::Open(job.status)) };
        if with_timeout(self.store.give_up(&record, UNPUBLISHED_FOR)).await?.is_none() {
            return Err(Error::Open(job.status));
        }
        // In a folder that is another one's the sweeper of that removes it, should it ever be back.
        let removed = self.on_folder(move |folder| {
            match record.is_own && folder.destination_id()? == record.staged.destination {
                true => folder.discard(&record.staged, &record.name),
                false => Ok(()),
            }
        });
        if let Err(error) = removed.await {
            tracing::warn!(event = "file_left_behind", jobId = %id, error = chain(&error));
        }
        Ok(())
    }

    /// Whether the output folder can take a file.
    pub(super) async fn room(&self) -> Result<(), Error> {
        Ok(self.on_folder(|folder| folder.require_room()).await?)
    }

    /// File operations block; they have threads of their own, and as long as a client waits.
    pub(super) async fn on_folder<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, sink::Error> + Send + 'static,
    ) -> Result<T, sink::Error> {
        let folder = Arc::clone(&self.folder);
        let done = async {
            let turn = Arc::clone(&self.turns).acquire_owned().await.expect("nobody closes the semaphore");
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                work(&folder)
            })
            .await
        };
        match tokio::time::timeout(CALL_TIMEOUT, done).await {
            Ok(done) => done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())),
            Err(_) => Err(sink::Error::Io(std::io::ErrorKind::TimedOut.into())),
        }
    }
}
