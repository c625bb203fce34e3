//! The files of exports: opening, presigned URLs, removal and manifests.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use tokio::io::AsyncRead;

use crate::audit::Action;
use crate::file::FileRecord;
use crate::job::{Export, Status};
use crate::service::deadline::with_timeout;
use crate::service::{Error, Service};
use crate::telemetry::job_event;
use cdc_destination::{self, Destination, ExportFiles, PublishedFile};
use cdc_manifest::{ConsumerId, JobId};
use pg_rows::encoding::Encoding;
use pg_session::failure::chain;

const URL_LIFETIME: Duration = Duration::from_secs(300);

/// An opened committed file. Its content is verified to be the exported one. Reading fails if the file has become
/// unavailable.
#[derive(Debug)]
pub struct DownloadableFile {
    file: Box<dyn PublishedFile>,
    job: JobId,
    consumer: Option<ConsumerId>,
    dataset: String,
    pub name: String,
    pub bytes: u64,
    /// The file's SHA-256 in hexadecimal.
    pub sha256: String,
    pub encoding: Encoding,
    /// The time of the commit.
    pub finished_at: Option<DateTime<Utc>>,
}

/// A presigned URL of a file, which needs no key.
#[derive(Debug)]
pub struct FileUrl {
    pub url: String,
    pub expires_at: DateTime<Utc>,
}

impl DownloadableFile {
    pub async fn part(self, from: u64, length: u64) -> Result<impl AsyncRead, Error> {
        Ok(self.file.part(from, length).await?)
    }
}

/// Returns the reason why a job with this status has no file.
fn no_file(status: Status) -> Error {
    if status == Status::Skipped { Error::Skipped } else { Error::NoFile(status) }
}

impl Service {
    /// Opens the file of a completed export, or one of its files if `part` is given.
    ///
    /// # Errors
    /// As [`export`](Service::export). If the file does not exist, was changed, or is at another destination; or if the
    /// export has several files and `part` is missing.
    pub async fn open_file(
        &self,
        id: JobId,
        dataset: Option<&str>,
        part: Option<u32>,
    ) -> Result<DownloadableFile, Error> {
        let dataset = self.dataset_of(id, dataset).await?;
        let record = match with_timeout(self.store.file(id, &dataset)).await? {
            Some(record) if record.is_published => record,
            Some(_) => return Err(Error::NoFile(Status::Processing)),
            None => return Err(no_file(self.export(id, Some(&dataset)).await?.status)),
        };
        let place = match part {
            Some(part) => (part as usize).wrapping_sub(1),
            None if record.files.parts.len() > 1 => return Err(Error::SeveralFiles(record.files.parts.len())),
            None => 0,
        };
        let (name, staged) = record.files.named().nth(place).ok_or(Error::NoPart(record.files.parts.len()))?;
        let file = self.destination.open(staged, &name).await?.ok_or(Error::FileGone)?;
        let (bytes, sha256) = (staged.identity.bytes, staged.sha256.clone());
        let FileRecord { files: ExportFiles { consumer, dataset, .. }, encoding, finished_at, .. } = record;
        Ok(DownloadableFile { file, job: id, consumer, dataset, name, bytes, sha256, encoding, finished_at })
    }

    /// Returns the dataset of an export: `dataset`, or the only one that the caller may see.
    ///
    /// A caller without bounds that names a dataset may see it, so the job is not read. Else the downloads of all
    /// exports of a large job would read all of them each time.
    async fn dataset_of(&self, id: JobId, dataset: Option<&str>) -> Result<String, Error> {
        let _ = self.origin.job.set(id);
        match dataset {
            Some(name) if self.bounds.allow_all() => Ok(name.to_owned()),
            _ => Ok(self.export(id, dataset).await?.dataset),
        }
    }

    /// Creates a presigned URL of a completed export's file.
    ///
    /// # Errors
    /// As [`open_file`](Service::open_file), and if the file is in a folder.
    pub async fn file_url(&self, id: JobId, dataset: Option<&str>) -> Result<FileUrl, Error> {
        let file = self.open_file(id, dataset, None).await?;
        let url = self.url_of(&*file.file).await?.ok_or(Error::NoUrl)?;
        self.log_download(&file);
        Ok(url)
    }

    /// Logs that a download of a file begins, or that its address is handed out.
    pub fn log_download(&self, file: &DownloadableFile) {
        let DownloadableFile { consumer, dataset, job, .. } = file;
        self.origin.log_done(Action::Download, consumer.as_ref(), Some(dataset), Some(*job));
    }

    /// Returns the URL to which a download is redirected, or `None` if the service streams the bytes.
    pub async fn redirection(&self, file: &DownloadableFile) -> Result<Option<FileUrl>, Error> {
        if self.redirects_downloads { self.url_of(&*file.file).await } else { Ok(None) }
    }

    async fn url_of(&self, file: &dyn PublishedFile) -> Result<Option<FileUrl>, Error> {
        let lifetime = failpoint::time("service.url", URL_LIFETIME);
        // Computed before signing and rounded down to whole seconds, as buckets count. So the reported time is never
        // too late.
        let expires_at = Utc::now().trunc_subsecs(0) + lifetime;
        Ok(file.url(lifetime).await?.map(|url| FileUrl { url, expires_at }))
    }

    /// Removes the files of an ended job: those of a dataset, or of all that the caller may see. The exports are kept.
    ///
    /// # Errors
    /// As [`exports_of`](Service::exports_of). If one of the exports is open, or if the files are on another host or
    /// belong to another database.
    pub async fn remove_files(&self, id: JobId, dataset: Option<&str>) -> Result<(), Error> {
        let exports = self.exports_of(id, dataset).await?;
        if let Some(open) = exports.iter().find(|export| !export.status.is_terminal()) {
            return Err(Error::Open(open.status));
        }
        for export in &exports {
            let Some(record) = with_timeout(self.store.file(id, &export.dataset)).await? else { continue };
            if !record.is_own {
                return Err(Error::FileOfOtherDatabase);
            }
            self.destination.remove(&record.files.owned()).await?;
            with_timeout(self.store.files_removed(&[(id, export.dataset.as_str())])).await?;
            self.origin.log_job(Action::RemoveFile, export);
            job_event!(info, export, "file_removed", file = record.files.name);
        }
        Ok(())
    }

    /// Returns the text of a completed export's manifest.
    ///
    /// # Errors
    /// As [`export`](Service::export), and if the export has no manifest.
    pub async fn manifest(&self, id: JobId, dataset: Option<&str>) -> Result<String, Error> {
        let dataset = self.dataset_of(id, dataset).await?;
        match with_timeout(self.store.manifest(id, &dataset)).await? {
            Some(text) => Ok(text),
            None => match self.export(id, Some(&dataset)).await?.status {
                Status::Completed => Err(Error::NoManifest),
                other => Err(no_file(other)),
            },
        }
    }

    /// Gives up the exports of an open job that were committed a while ago but whose files are not published: that of a
    /// dataset, or all. They fail, and their files are removed. The files of the job's published exports stay.
    ///
    /// # Errors
    /// As [`exports_of`](Service::exports_of). If an export is in another open state.
    pub async fn give_up(&self, id: JobId, dataset: Option<&str>) -> Result<(), Error> {
        let exports = self.exports_of(id, dataset).await?;
        for export in exports.iter().filter(|export| !export.status.is_terminal()) {
            self.give_up_export(export).await?;
        }
        Ok(())
    }

    async fn give_up_export(&self, export: &Export) -> Result<(), Error> {
        let record = with_timeout(self.store.file(export.job, &export.dataset)).await?;
        let record = record.ok_or(Error::Open(export.status))?;
        if with_timeout(self.store.give_up(&record)).await?.is_none() {
            let now = self.export(export.job, Some(&export.dataset)).await?;
            // An export that was published meanwhile needs no giving up. A refusal would hide that others were given
            // up.
            return if now.status.is_terminal() { Ok(()) } else { Err(Error::Open(now.status)) };
        }
        self.origin.log_job(Action::GiveUp, export);
        if !record.is_own {
            return Ok(());
        }
        match self.destination.discard(&record.files).await {
            // If the other destination becomes available again, its cleanup removes the file.
            Ok(()) | Err(cdc_destination::Error::Elsewhere) => {}
            Err(error) => tracing::warn!(event = "file_left_behind", jobId = %export.job, error = chain(&error)),
        }
        Ok(())
    }
}
