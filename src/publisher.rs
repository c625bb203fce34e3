//! Publishes the files of committed jobs: renames them to their final names, writes the manifest next to them, and
//! records the publication.
//!
//! Several processes may publish the same files at the same time. After a crash at any point, any process can complete
//! the publication.

use std::time::Duration;

use crate::failpoint;
use crate::file::FileRecord;
use crate::job::lane::Lane;
use crate::job::{JobId, Status};
use crate::manifest::Manifest;
use crate::manifest::signing::SigningKey;
use crate::sink::{self, Destination, Limited, MarkerFile, Published, WrittenManifest, path_from_manifest};
use crate::store::manifests::Planned;
use crate::store::{self, Store, lease};
use crate::telemetry::chain;
use crate::telemetry::spans::{Kind, Span};

/// The outcome of a publication.
#[derive(Debug)]
pub enum Publication {
    /// The files are published, the job ended in another way, or an earlier export of the lane must be published first.
    Done,
    /// A file is not at the destination. Another process may be renaming it at this moment.
    Missing(Box<FileRecord>),
}

/// The error of a publication.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The destination failed.
    #[error(transparent)]
    Sink(#[from] sink::Error),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The settings of manifests at a destination.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// True if the publisher writes the manifest of a consumer's export next to its files. The database always has it.
    pub writes_manifests: bool,
    /// The key that signs manifests. `None` leaves them unsigned.
    pub key: Option<SigningKey>,
}

/// Publishes files to one destination. Every method returns an error if the destination or the database fails.
#[derive(Clone, Debug)]
pub struct Publisher {
    store: Store,
    destination: Limited,
    settings: Settings,
}

/// The state of an export's files at the destination.
enum FilesAtDestination {
    /// All files have their final names, and the manifest is written if there is one.
    Complete,
    /// One of the names belongs to another file.
    NameTaken,
    /// The number of the manifest is already used.
    NumberTaken {
        /// The used number.
        number: u64,
        /// The largest number of a manifest of the lane.
        last: u64,
    },
    /// A file is under neither its hidden nor its final name.
    Missing,
    /// Another process has renamed the export meanwhile, so the caller's record is outdated.
    Renamed,
    /// The export must not be published now: it was published or given up meanwhile, or an earlier export of the lane
    /// must be published first.
    NotDue,
}

impl Publisher {
    /// Returns a publisher for this destination, with its limits. `lease` is the duration of a lease. It bounds the
    /// duration of each database call.
    pub fn new(store: &Store, destination: &Limited, settings: &Settings, lease: Duration) -> Publisher {
        Publisher {
            store: store.clone().within(lease::call_timeout(lease)),
            destination: destination.clone(),
            settings: settings.clone(),
        }
    }

    /// Publishes the files of a job if the job is committed. Leaves a job with a missing file to maintenance.
    pub async fn publish_job(&self, job: JobId) -> Result<(), Error> {
        match self.store.file(job).await? {
            Some(record) => self.publish(record).await.map(drop),
            None => Ok(()),
        }
    }

    /// Publishes the files of a committed job.
    pub async fn publish(&self, record: FileRecord) -> Result<Publication, Error> {
        let span = Span::start("publish", Kind::Internal, record.trace.as_ref());
        span.set("cdc_export.job.id", record.job.to_string());
        let published = span.around(self.publish_all(record)).await;
        if let Err(error) = &published {
            span.fail(chain(error));
        }
        published
    }

    async fn publish_all(&self, mut record: FileRecord) -> Result<Publication, Error> {
        loop {
            // The marker is written before the files are renamed. If the database is later restored to a state without
            // this export, the marker reveals it.
            self.write_marker(&record).await?;
            let state = self.rename_files(&mut record).await?;
            match state {
                FilesAtDestination::Complete if self.set_published(&record).await? => return Ok(Publication::Done),
                // Another process has recorded the publication, possibly under another name. The record is read again.
                FilesAtDestination::Complete => {}
                FilesAtDestination::NameTaken => self.store.rename_output(&record).await?,
                FilesAtDestination::NumberTaken { number, last } => {
                    if self.store.skip_to(&record, last).await? {
                        tracing::warn!(event = "manifest_taken", jobId = %record.job, number, goesOnBehind = last);
                    }
                }
                FilesAtDestination::Missing | FilesAtDestination::Renamed => {}
                FilesAtDestination::NotDue => return Ok(Publication::Done),
            }
            match self.store.file(record.job).await? {
                None => return Ok(Publication::Done),
                Some(now) if now.name == record.name => match state {
                    _ if now.is_published => return Ok(Publication::Done),
                    FilesAtDestination::Missing => return Ok(Publication::Missing(Box::new(now))),
                    // An earlier export of the lane must be published first.
                    FilesAtDestination::Complete => return Ok(Publication::Done),
                    _ => record = now,
                },
                Some(now) => record = now,
            }
        }
    }

    /// Renames the files to their final names, then writes the manifest that names them.
    async fn rename_files(&self, record: &mut FileRecord) -> Result<FilesAtDestination, Error> {
        // The database records the manifest before the first rename. So after a crash, it knows every written manifest.
        let manifest = match &record.consumer {
            Some(_) if self.settings.writes_manifests => match self.plan(record).await? {
                None => return Ok(FilesAtDestination::NotDue),
                manifest => manifest,
            },
            _ => None,
        };
        record.manifest = manifest.as_ref().map(|(_, text)| text.clone());
        if let Some((_, text)) = &manifest
            && self.destination.is_manifest_name_taken(record, text).await?
        {
            return Ok(FilesAtDestination::NameTaken);
        }
        let names: Vec<_> = record.files().map(|(name, _)| name).collect();
        for (part, name) in record.parts.iter_mut().zip(names) {
            let mut published = self.destination.publish(&part.staged, &name).await?;
            if published == Published::Misnamed {
                // A delayed process must not rename a file that another process has published meanwhile.
                let now = self.store.file(record.job).await?;
                if now.is_none_or(|now| now.name != record.name) {
                    return Ok(FilesAtDestination::Renamed);
                }
                published = self.destination.rename(&part.staged, &name).await?;
            }
            match published {
                Published::Done(location) => part.staged.identity.location = location,
                Published::Taken => return Ok(FilesAtDestination::NameTaken),
                Published::Gone | Published::Misnamed => return Ok(FilesAtDestination::Missing),
            }
        }
        failpoint!("publisher.named", Ok(FilesAtDestination::NotDue));
        let Some((number, text)) = manifest else {
            let is_chained = record.consumer.is_none() || self.plan(record).await?.is_some();
            return Ok(if is_chained { FilesAtDestination::Complete } else { FilesAtDestination::NotDue });
        };
        match self.destination.write_manifest(record, number, &text).await? {
            WrittenManifest::Done => Ok(FilesAtDestination::Complete),
            WrittenManifest::Taken => {
                let last = self.destination.last_manifest(record).await?;
                let is_name = last == 0;
                Ok(if is_name {
                    FilesAtDestination::NameTaken
                } else {
                    FilesAtDestination::NumberTaken { number, last }
                })
            }
        }
    }

    /// Returns the number and the text of the manifest. Records them in the database if they are not recorded yet.
    ///
    /// They are recorded before the manifest is written to the destination. So all processes that publish the export
    /// write the same manifest, also after a crash. Returns `None` if the export was published or given up, or
    /// if an earlier export of the lane must be published first.
    async fn plan(&self, record: &FileRecord) -> Result<Option<(u64, String)>, Error> {
        loop {
            let (number, mut export) = match self.store.planned_manifest(record).await? {
                None => return Ok(None),
                Some(Planned::Written(number, text)) => return Ok(Some((number, text))),
                Some(Planned::New(number, export)) => (number, *export),
            };
            let mut urls = Vec::new();
            for (file, (name, staged)) in export.files.iter_mut().zip(record.files()) {
                let path = path_from_manifest(&staged.identity.location, &name);
                urls.push(self.destination.location(&staged.identity.location, &name).unwrap_or_else(|| path.clone()));
                file.path = Some(path);
            }
            let mut manifest = Manifest::new(number, export, urls);
            if let Some(key) = &self.settings.key {
                key.sign(&mut manifest);
            }
            self.store.plan_manifest(record, &manifest).await?;
        }
    }

    /// Records the publication. Returns false if another process has recorded it, the export was given up, or an
    /// earlier export of the lane must be published first.
    async fn set_published(&self, record: &FileRecord) -> Result<bool, Error> {
        let files = record.files();
        let locations: Vec<_> =
            files.map(|(name, file)| self.destination.location(&file.identity.location, &name)).collect();
        if self.store.published(record, &locations).await?.is_some() {
            return Ok(true);
        }
        match self.store.job(record.job).await? {
            // The export was given up at the same time. Files without a completed job must be removed.
            Some(job) if job.status == Status::Failed => self.destination.discard(record).await?,
            // The export was published, and retention has removed the job. The manifest must stay.
            None => {}
            Some(_) => {
                if let Some(last) = self.store.last_of_lane(record).await? {
                    // This process may have been paused while another one published later exports. It may then have
                    // replaced a newer marker with an older one.
                    self.write_marker(&last).await?;
                }
            }
        }
        Ok(false)
    }

    /// Writes the lane's marker for this export.
    ///
    /// Keeps the existing marker if it names a later export, or an export that the database does not know. The latter
    /// means that the database was restored. The lane's next attempt detects such a marker and requires a full export.
    async fn write_marker(&self, record: &FileRecord) -> Result<(), Error> {
        let Some(consumer) = &record.consumer else { return Ok(()) };
        let file = MarkerFile::new(&record.database, Lane { consumer, dataset: &record.dataset });
        let (marker, mut replaced) = (record.marker(), record.marker_seen);
        loop {
            let kept = self.destination.write_lane_marker(&file, &marker, replaced).await?;
            let Some(other) = kept else { return Ok(()) };
            // In the next iteration the marker may name a third export, which is checked in the same way.
            if !self.store.is_after(record, &other).await? {
                tracing::warn!(event = "marker_left", jobId = %record.job, marked = %other.job);
                return Ok(());
            }
            replaced = Some(other.job);
        }
    }

    /// Fails a job with a missing file, and removes the job's other files. Does nothing if the job was published
    /// meanwhile.
    pub async fn give_up(&self, record: &FileRecord) -> Result<(), Error> {
        let is_given_up = self.store.give_up(record).await?.is_some();
        if is_given_up && record.is_own {
            self.destination.discard(record).await?;
        }
        Ok(())
    }
}
