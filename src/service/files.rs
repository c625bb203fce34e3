//! The files of exports, as clients have them.

use chrono::{DateTime, SubsecRound, Utc};
use tokio::io::AsyncRead;

use crate::job::{JobId, Status};
use crate::service::deadline::with_timeout;
use crate::service::{Error, Service};
use crate::sink::{self, Destination, PublishedFile};
use crate::telemetry::{chain, job_event};
use pg_rows::encoding::Encoding;

/// A committed file, open: the very one that was exported. A call fails if it can't be read there.
#[derive(Debug)]
pub struct OpenFile {
    file: Box<dyn PublishedFile>,
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// How it is written.
    pub encoding: Encoding,
    /// When it was committed.
    pub finished_at: DateTime<Utc>,
}

/// An address of a file at its store, which needs no key.
#[derive(Debug)]
pub struct FileUrl {
    /// The address.
    pub url: String,
    /// When the store begins to refuse it.
    pub expires_at: DateTime<Utc>,
}

impl OpenFile {
    /// `length` bytes from `from` on.
    pub async fn part(self, from: u64, length: u64) -> Result<impl AsyncRead, Error> {
        Ok(self.file.part(from, length).await?)
    }
}

impl Service {
    /// Opens the file of a completed job that has one, or this part of one that has several.
    ///
    /// # Errors
    /// If there is no such file, or several and none is named, or it is not what was exported, or not here.
    pub async fn open_file(&self, id: JobId, part: Option<u32>) -> Result<OpenFile, Error> {
        let record = match with_timeout(self.store.file(id)).await? {
            Some(record) if record.is_published => record,
            Some(_) => return Err(Error::NoFile(Status::Processing)),
            None => return Err(Error::NoFile(self.job(id).await?.status)),
        };
        let place = match part {
            Some(part) => (part as usize).wrapping_sub(1),
            None if record.parts.len() > 1 => return Err(Error::SeveralFiles(record.parts.len())),
            None => 0,
        };
        let (name, staged) = record.files().nth(place).ok_or(Error::NoPart(record.parts.len()))?;
        let file = self.destination.open(staged, &name).await?.ok_or(Error::FileGone)?;
        let (bytes, sha256) = (staged.identity.bytes, staged.sha256.clone());
        Ok(OpenFile { file, name, bytes, sha256, encoding: record.encoding, finished_at: record.finished_at })
    }

    /// An address of a completed job's file at its store.
    ///
    /// # Errors
    /// As [`open_file`](Service::open_file), and if the file is in a folder.
    pub async fn file_url(&self, id: JobId) -> Result<FileUrl, Error> {
        let OpenFile { file, .. } = self.open_file(id, None).await?;
        self.url_of(&*file).await?.ok_or(Error::NoUrl)
    }

    /// The address that a client of a download is sent to; `None`: the service passes the bytes on.
    ///
    /// # Errors
    /// If the store's credentials can't sign an address.
    pub async fn redirection(&self, file: &OpenFile) -> Result<Option<FileUrl>, Error> {
        if self.downloads.are_redirected { self.url_of(&*file.file).await } else { Ok(None) }
    }

    async fn url_of(&self, file: &dyn PublishedFile) -> Result<Option<FileUrl>, Error> {
        let lifetime = self.downloads.url_lifetime;
        // Before it is signed, and in whole seconds, as stores count: nobody is promised more than there is.
        let expires_at = Utc::now().trunc_subsecs(0) + lifetime;
        Ok(file.url(lifetime).await?.map(|url| FileUrl { url, expires_at }))
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
        for (name, file) in record.files() {
            self.destination.remove(file, &name).await?;
        }
        with_timeout(self.store.file_removed(id)).await?;
        job_event!(info, job, "file_removed", file = record.name);
        Ok(())
    }

    /// The text of a completed job's manifest.
    ///
    /// # Errors
    /// If the job isn't completed or has none.
    pub async fn manifest(&self, id: JobId) -> Result<String, Error> {
        match with_timeout(self.store.manifest(id)).await? {
            Some(text) => Ok(text),
            None => match self.job(id).await?.status {
                Status::Completed => Err(Error::NoManifest),
                other => Err(Error::NoFile(other)),
            },
        }
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
}
