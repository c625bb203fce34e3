//! Gives committed files their final names, writes the manifest beside them, and records both.
//!
//! Several processes may publish the same export at once, and again after a crash at any point. The exports of a job
//! are published in any order: each is the only unpublished export of its lane. The last one ends the job.

use crate::file::FileRecord;
use crate::job::times::Times;
use crate::store::manifests::Planned;
use crate::store::{self, Store};
use crate::telemetry::spans::{Kind, Span};
use cdc_destination::{self, Destination, Limited, MarkerFile, Published, WrittenManifest, path_from_manifest};
use cdc_manifest::{Chained, Lane, Manifest, SigningKey};
use failpoint::failpoint;
use pg_session::failure::chain;

/// The result of a publication.
#[derive(Debug)]
pub enum Publication {
    /// The files are published, the export ended in another way, or an earlier export of the lane must be published
    /// first.
    Done,
    /// A file is not at the destination. Another process may be renaming it at this moment.
    Missing(Box<FileRecord>),
}

/// An error that leaves a file without its final name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Sink(#[from] cdc_destination::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// True if the manifest of a consumer's export is written beside its files. The database has it in any case.
    pub writes_manifests: bool,
    /// The key that signs manifests; `None`: they are not signed.
    pub key: Option<SigningKey>,
}

#[derive(Clone, Debug)]
pub struct Publisher {
    store: Store,
    destination: Limited,
    settings: Settings,
}

/// The state of the destination after an attempt to publish an export.
enum PublishStep {
    /// The files and the manifest, if there is one, have their final names.
    All,
    /// Another file has one of the names.
    NameTaken,
    /// Another manifest has this number. The second one is the largest number at the destination.
    NumberTaken(u64, u64),
    /// A file is missing under both of its names.
    Gone,
    /// Another process has renamed the export since its record was read.
    Renamed,
    /// There is nothing to publish: the export was published or given up, or an earlier one comes first.
    NotNow,
}

impl Publisher {
    pub fn new(store: &Store, destination: &Limited, settings: &Settings, times: Times) -> Publisher {
        Publisher {
            store: store.clone().within(times.call),
            destination: destination.clone(),
            settings: settings.clone(),
        }
    }

    pub async fn publish(&self, record: FileRecord) -> Result<Publication, Error> {
        let span = Span::start("publish", Kind::Internal, record.trace.as_ref());
        let (job, dataset) = (record.files.job, record.files.dataset.clone());
        span.set("cdc_export.job.id", job.to_string());
        let mut published = span.around(self.publish_all(record)).await;
        // Another process published the export in the meantime, and a sweep removed this publisher's hidden file.
        if let Err(Error::Sink(_)) = published
            && self.store.file(job, &dataset).await?.is_some_and(|now| now.is_published)
        {
            published = Ok(Publication::Done);
        }
        if let Err(error) = &published {
            span.fail(chain(error));
        }
        published
    }

    async fn publish_all(&self, mut record: FileRecord) -> Result<Publication, Error> {
        // The commit did not wait for the standby. Nobody may see a file of an export that a failover would lose.
        if record.awaits_standby {
            self.store.await_standby(&record).await?;
        }
        loop {
            // The marker beside the files comes first: the database may be restored to a state in which it knows
            // nothing of this export.
            self.write_marker(&record).await?;
            let step = self.publish_files(&mut record).await?;
            match step {
                PublishStep::All if self.set_published(&record).await? => return Ok(Publication::Done),
                // Another has done it, perhaps under another name, which is the file's then.
                PublishStep::All => {}
                PublishStep::NameTaken => self.store.rename_output(&record).await?,
                PublishStep::NumberTaken(number, last) => {
                    if self.store.skip_to(&record, last).await? {
                        tracing::warn!(event = "manifest_taken", jobId = %record.files.job, number, goesOnBehind = last);
                    }
                }
                PublishStep::Gone | PublishStep::Renamed => {}
                PublishStep::NotNow => return Ok(Publication::Done),
            }
            match self.store.file(record.files.job, &record.files.dataset).await? {
                None => return Ok(Publication::Done),
                Some(now) if now.files.name == record.files.name => match step {
                    _ if now.is_published => return Ok(Publication::Done),
                    PublishStep::Gone => return Ok(Publication::Missing(Box::new(now))),
                    // An earlier export of its lane comes first.
                    PublishStep::All => return Ok(Publication::Done),
                    _ => record = now,
                },
                Some(now) => record = now,
            }
        }
    }

    /// Files first, then the manifest that names them.
    async fn publish_files(&self, record: &mut FileRecord) -> Result<PublishStep, Error> {
        // The name is recorded before the file gets it. So after a crash, each manifest is known to the database.
        let manifest = match &record.files.consumer {
            Some(_) => match self.plan(record).await? {
                None => return Ok(PublishStep::NotNow),
                manifest => manifest,
            },
            None => None,
        };
        record.files.manifest = manifest.as_ref().map(|(_, text)| text.clone());
        let manifest = manifest.filter(|_| self.settings.writes_manifests);
        if let Some((_, text)) = &manifest
            && self.destination.is_manifest_name_taken(&record.files, text).await?
        {
            return Ok(PublishStep::NameTaken);
        }
        let names: Vec<_> = record.files.named().map(|(name, _)| name).collect();
        for (part, name) in record.files.parts.iter_mut().zip(names) {
            let mut published = self.destination.publish(&part.staged, &name).await?;
            if published == Published::Misnamed {
                // A publisher that was delayed must not rename a file that another one has published.
                let now = self.store.file(record.files.job, &record.files.dataset).await?;
                if now.is_none_or(|now| now.files.name != record.files.name) {
                    return Ok(PublishStep::Renamed);
                }
                published = self.destination.rename(&part.staged, &name).await?;
            }
            match published {
                Published::Done(location) => part.staged.identity.location = location,
                Published::Taken => return Ok(PublishStep::NameTaken),
                Published::Gone | Published::Misnamed => return Ok(PublishStep::Gone),
            }
        }
        failpoint!("publisher.named", Ok(PublishStep::NotNow));
        let Some((number, text)) = manifest else { return Ok(PublishStep::All) };
        match self.destination.write_manifest(&record.files, number, &text).await? {
            WrittenManifest::Done => Ok(PublishStep::All),
            WrittenManifest::Taken => {
                let last = self.destination.last_manifest(&record.files).await?;
                Ok(if last == 0 { PublishStep::NameTaken } else { PublishStep::NumberTaken(number, last) })
            }
        }
    }

    /// Returns the number and the text of the manifest. Records them in the database if they are not recorded yet.
    ///
    /// They are recorded before the manifest is written to the destination. So all processes that publish the export
    /// write the same manifest, also after a crash. Returns `None` if the export was published or given up, or
    /// if an earlier export of the lane must be published first.
    async fn plan(&self, record: &FileRecord) -> Result<Option<(u64, String)>, Error> {
        // The commit or an earlier publisher has recorded it.
        if let Some(text) = &record.files.manifest
            && let Ok(planned) = Manifest::read(text.as_bytes())
        {
            return Ok(Some((planned.number, text.clone())));
        }
        loop {
            let (number, export) = match self.store.planned_manifest(record).await? {
                None => return Ok(None),
                Some(Planned::Written(number, text)) => return Ok(Some((number, text))),
                Some(Planned::New(number, export)) => (number, *export),
            };
            self.store.plan_manifest(record, &self.manifest(record, number, export)).await?;
        }
    }

    /// Returns the manifest of an export: its content with the places of the files, and the signature.
    pub fn manifest(&self, record: &FileRecord, number: u64, mut export: Chained) -> Manifest {
        let mut urls = Vec::new();
        for (file, (name, staged)) in export.files.iter_mut().zip(record.files.named()) {
            let path = path_from_manifest(&staged.identity.location, &name);
            urls.push(self.destination.location(&staged.identity.location, &name).unwrap_or_else(|| path.clone()));
            file.path = Some(path);
        }
        let mut manifest = Manifest::new(number, export, urls);
        if let Some(key) = &self.settings.key {
            key.sign(&mut manifest);
        }
        manifest
    }

    /// Records that the export is published. Returns false if another process did, if it was given up, or if an earlier
    /// one comes first.
    async fn set_published(&self, record: &FileRecord) -> Result<bool, Error> {
        let files = record.files.named();
        let locations: Vec<_> =
            files.map(|(name, file)| self.destination.location(&file.identity.location, &name)).collect();
        if self.store.published(record, &locations).await?.is_some() {
            return Ok(true);
        }
        match self.store.has_failed(record.files.job, &record.files.dataset).await? {
            // The export was given up at the same time. Files without a completed export must be removed.
            Some(true) => self.destination.discard(&record.files).await?,
            // The export was published, and retention has removed it. The manifest must stay.
            None => {}
            Some(false) => {
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
        let Some(consumer) = &record.files.consumer else { return Ok(()) };
        let file = MarkerFile::new(&record.files.database, Lane { consumer, dataset: &record.files.dataset });
        let (marker, mut replaced) = (record.marker(), record.marker_seen);
        loop {
            let kept = self.destination.write_lane_marker(&file, &marker, replaced).await?;
            let Some(other) = kept else { return Ok(()) };
            // In the next iteration the marker may name a third export, which is checked in the same way.
            let Some(is_later) = self.store.is_after(record, &other).await? else {
                tracing::warn!(event = "marker_left", jobId = %record.files.job, dataset = record.files.dataset, marked = %other.job);
                return Ok(());
            };
            // Another process has published this export and a later one.
            if !is_later {
                tracing::info!(event = "marker_left", jobId = %record.files.job, marked = %other.job);
                return Ok(());
            }
            replaced = Some(other.job);
        }
    }

    /// Fails an export with a missing file, and removes its other files. Does nothing if it was published meanwhile.
    pub async fn give_up(&self, record: &FileRecord) -> Result<(), Error> {
        let is_given_up = self.store.give_up(record).await?.is_some();
        if is_given_up && record.is_own {
            self.destination.discard(&record.files).await?;
        }
        Ok(())
    }
}
