//! A destination: where the files of exports go, and the markers of their lanes. Drafts are written there under hidden names and appear
//! under their final ones when they are committed.
//!
//! Each caller has limits of its own, within which its operations may block. Knows no queue, no store and no format; what the names
//! belong to is the caller's business.

mod archive;
#[cfg(feature = "buckets")]
mod bucket;
mod drafts;
mod error;
mod folder;
mod found;
mod manifests;
mod marker_file;
mod published_file;
mod settings;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::file::hidden::HiddenFile;
use crate::file::name::FileName;
use crate::file::{FileLocation, FileRecord, StagedFile};
use crate::job::lane::Lane;
use crate::job::marker::Marker;
use crate::job::{ConsumerId, JobId};
use crate::sink::turns::Turns;

pub use archive::{Archive, ArchivedFile};
#[cfg(feature = "buckets")]
pub use bucket::{Address, BadAddress, Bucket, Settings as BucketSettings};
pub use drafts::{Draft, Drafts};
pub use error::Error;
pub use folder::Folder;
pub use found::Found;
pub use manifests::{WrittenManifest, path_from_manifest};
pub use marker_file::MarkerFile;
pub use published_file::PublishedFile;
pub use settings::Settings;
pub use turns::Limits;

/// What holds the id of a destination, beside its files.
const MARK: &str = ".cdc-export-store";

/// What a destination was before it was prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// It had a mark.
    Known,
    /// It had no mark, so it has no file that this service's database knows.
    New,
}

/// The limits of a caller that set none, which are the workers of a process: twice as many operations at once as there may be workers,
/// since one that hangs keeps its turn when its attempt has ended.
const LIMITS: Limits = Limits { at_once: 128, timeout: None };

/// How a publication went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// The file stands under its final name, by this call or an earlier one; it is here now.
    Done(FileLocation),
    /// Another file has that name.
    Taken,
    /// The file has another final name: it was perhaps handed out under that.
    Misnamed,
    /// The file is in the folder under no name.
    Gone,
}

/// The folder or bucket that files go to, and the turns in which it is used. Clones share their limits.
///
/// # Errors
/// Every call fails if the destination fails or doesn't answer in time, and one for a file or its manifest if that is elsewhere. Its own
/// documentation names what else makes it fail.
#[derive(Clone, Debug)]
pub struct Destination {
    place: Place,
    turns: Turns,
}

#[derive(Clone, Debug)]
enum Place {
    /// A folder on a disk of this host, whose operations block, each on a thread.
    Folder(Arc<Folder>),
    /// A bucket of an object store.
    #[cfg(feature = "buckets")]
    Bucket(Arc<Bucket>),
}

impl Destination {
    /// The destination of these settings; touches nothing yet.
    ///
    /// # Errors
    /// If they can't be used.
    pub fn new(settings: &Settings) -> Result<Destination, Error> {
        let place = match settings {
            Settings::Folder { path, file_mode } => {
                Place::Folder(Arc::new(Folder::new(path.clone()).with_file_mode(*file_mode)))
            }
            #[cfg(feature = "buckets")]
            Settings::Bucket(bucket) => Place::Bucket(Arc::new(Bucket::new(bucket.clone())?)),
        };
        Ok(Destination { place, turns: Turns::new(LIMITS) })
    }

    /// The same destination for another caller, whom these limits hold.
    pub fn limited(&self, limits: Limits) -> Destination {
        Destination { turns: Turns::new(limits), ..self.clone() }
    }

    /// Runs an operation of a folder, which may block.
    async fn run<T: Send + 'static>(
        &self,
        folder: &Arc<Folder>,
        work: impl FnOnce(&Folder) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let folder = Arc::clone(folder);
        self.turns.run(move || work(&folder)).await
    }

    /// Makes the destination usable and marks it as one, where it isn't, and requires that it can be written. For a process that exports or
    /// serves: those that only look make nothing.
    pub async fn prepare(&self) -> Result<Prepared, Error> {
        match &self.place {
            Place::Folder(folder) => self.run(folder, Folder::prepare).await,
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => self.turns.wait(bucket.prepare()).await,
        }
    }

    /// The destination's id, which is the same to every process that has this destination.
    ///
    /// # Errors
    /// If there is none and none can be made, or it is another one than before.
    pub async fn id(&self) -> Result<Uuid, Error> {
        match &self.place {
            Place::Folder(folder) => self.run(folder, Folder::destination_id).await,
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => self.turns.wait(bucket.id()).await,
        }
    }

    /// Requires that a file can be written now.
    pub async fn require_room(&self) -> Result<(), Error> {
        match &self.place {
            Place::Folder(folder) => self.run(folder, Folder::require_room).await,
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => self.turns.wait(bucket.fresh_id()).await.map(drop),
        }
    }

    /// What makes the drafts of an attempt. Dropped, it stops them: nobody waits for them any more.
    pub fn drafts(&self, hidden: HiddenFile, name: FileName) -> Drafts {
        let stopped = CancellationToken::new();
        Drafts { destination: self.clone(), hidden, name, stopped: stopped.drop_guard() }
    }

    /// Removes the drafts of an attempt that has ended, whose first one this is; it is fine if there is none.
    pub async fn abort(&self, first: HiddenFile) -> Result<(), Error> {
        self.sweep(first.clone(), None).await?;
        // They are begun in their order, so the first that isn't there is the end.
        let mut part = 2;
        while self.sweep(first.with_part(part), None).await? {
            part += 1;
        }
        Ok(())
    }

    /// Gives a staged file its final name, durably. Never replaces a file. May be called again after a crash at any point, by any
    /// process that has this destination.
    ///
    /// # Errors
    /// The file may have its name then, which perhaps doesn't survive a crash.
    pub async fn publish(&self, file: &StagedFile, name: &str) -> Result<Published, Error> {
        let (file, name) = (file.clone(), name.to_owned());
        match &self.place {
            Place::Folder(folder) => self.run(folder, move |folder| folder.publish(&file, &name)).await,
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => self.turns.wait(bucket.publish(&file)).await,
        }
    }

    /// As [`publish`](Destination::publish), of a file that may have another final name: its caller has just found that its name is this one.
    pub async fn rename(&self, file: &StagedFile, name: &str) -> Result<Published, Error> {
        match &self.place {
            Place::Folder(folder) => {
                let (file, name) = (file.clone(), name.to_owned());
                self.run(folder, move |folder| folder.rename(&file, &name)).await
            }
            #[cfg(feature = "buckets")]
            Place::Bucket(_) => self.publish(file, name).await,
        }
    }

    /// Where a file is once it is published, as a URL. `None`: its path is none that a URL has room for.
    pub fn location(&self, file: &FileLocation, name: &str) -> Option<String> {
        match &self.place {
            Place::Folder(folder) => folder.location(name),
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => bucket.location(file),
        }
    }

    /// Opens a published file. `None`: it isn't there any more, or another one is in its place.
    pub async fn open(&self, file: &StagedFile, name: &str) -> Result<Option<PublishedFile>, Error> {
        let (file, name) = (file.clone(), name.to_owned());
        match &self.place {
            Place::Folder(folder) => {
                let opened = self.run(folder, move |folder| folder.open(&file, &name)).await?;
                Ok(opened.map(PublishedFile::Folder))
            }
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => {
                let opened = self.turns.wait(bucket.open(&file)).await?;
                Ok(opened.map(PublishedFile::Object))
            }
        }
    }

    /// Removes a published file if it is still the one that was recorded; what somebody put in its place stays.
    pub async fn remove(&self, file: &StagedFile, name: &str) -> Result<(), Error> {
        let (file, name) = (file.clone(), name.to_owned());
        match &self.place {
            Place::Folder(folder) => self.run(folder, move |folder| folder.remove(&file, &name)).await,
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => self.turns.wait(bucket.remove(&file)).await,
        }
    }

    /// Removes the files of an export that nobody may publish any more, wherever a publisher left them, and its manifest.
    pub async fn discard(&self, record: &FileRecord) -> Result<(), Error> {
        if let Some(text) = &record.manifest {
            self.remove_manifest(record, text).await?;
        }
        for (name, file) in record.files() {
            let file = file.clone();
            match &self.place {
                Place::Folder(folder) => self.run(folder, move |folder| folder.discard(&file, &name)).await?,
                #[cfg(feature = "buckets")]
                Place::Bucket(bucket) => self.turns.wait(bucket.remove(&file)).await?,
            }
        }
        Ok(())
    }

    /// The hidden files that there are, of live attempts and other databases too.
    pub async fn hidden_files(&self) -> Result<Vec<HiddenFile>, Error> {
        match &self.place {
            Place::Folder(folder) => self.run(folder, Folder::hidden_files).await,
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => self.turns.wait(bucket.hidden_files()).await,
        }
    }

    /// Removes a hidden file; where `unwritten_for` is given, only one that nobody has written for so long. True: it is removed.
    pub async fn sweep(&self, hidden: HiddenFile, unwritten_for: Option<Duration>) -> Result<bool, Error> {
        match &self.place {
            Place::Folder(folder) => self.run(folder, move |folder| folder.sweep(&hidden, unwritten_for)).await,
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => self.turns.wait(bucket.sweep(&hidden, unwritten_for)).await,
        }
    }

    /// Reads the marker of a lane. Returns `None` if there is none, and [`Marker::unreadable`] if something else has its name, or we have
    /// no right to read it.
    pub async fn marker(&self, file: MarkerFile) -> Result<Option<Marker>, Error> {
        match &self.place {
            Place::Folder(folder) => self.run(folder, move |folder| folder.marker(&file)).await,
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => self.turns.wait(bucket.marker(&file)).await,
        }
    }

    /// Reads the markers of several lanes. One that can't be read for the moment is `None` as well.
    pub async fn markers(&self, files: Vec<MarkerFile>) -> Result<Vec<Option<Marker>>, Error> {
        match &self.place {
            Place::Folder(folder) => {
                let read =
                    move |folder: &Folder| Ok(files.iter().map(|file| folder.marker(file).unwrap_or(None)).collect());
                self.run(folder, read).await
            }
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => {
                let read = async {
                    let markers = futures_util::future::join_all(files.iter().map(|file| bucket.marker(file))).await;
                    Ok(markers.into_iter().map(|marker| marker.unwrap_or(None)).collect())
                };
                self.turns.wait(read).await
            }
        }
    }

    /// Makes it durable that this file is the last one of its lane that is handed out. Called before the file has its name. Replaces no
    /// marker but that of the job `replaced`; returns another one, which it leaves: perhaps no database knows the export that it names.
    ///
    /// # Errors
    /// The marker is the one before then, or this one.
    pub async fn mark(
        &self,
        record: &FileRecord,
        consumer: &ConsumerId,
        replaced: Option<JobId>,
    ) -> Result<Option<Marker>, Error> {
        let file = MarkerFile::new(&record.database, Lane { consumer, dataset: &record.dataset });
        let marker = record.marker();
        match &self.place {
            Place::Folder(folder) => self.run(folder, move |folder| folder.mark(&file, &marker, replaced)).await,
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => self.turns.wait(bucket.mark(&file, &marker, replaced)).await,
        }
    }
}
