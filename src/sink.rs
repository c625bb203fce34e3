//! A destination: where the files of exports go, and the markers of their lanes. Drafts are written there under hidden names and appear
//! under their final ones when they are committed.
//!
//! Each caller has limits of its own, within which its operations may block. Knows no queue, no store and no format; what the names
//! belong to is the caller's business.

mod folder;
mod threads;

use std::fs::File;
use std::io::{self, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};
use uuid::Uuid;

use crate::database::DatabaseId;
use crate::file::FileRecord;
use crate::file::hidden::HiddenFile;
use crate::job::marker::Marker;
use crate::job::{ConsumerId, JobId};
use crate::sink::threads::Threads;

use folder::id::MARK;

pub use folder::{Draft, Folder, Prepared, marker_name};
pub use threads::Limits;

/// The limits of a caller that set none, which are the workers of a process: twice as many operations at once as there may be workers,
/// since one that hangs keeps its turn when its attempt has ended.
const LIMITS: Limits = Limits { at_once: 128, timeout: None };

/// As much of a file is read ahead for a client, in bytes; by default tokio would keep up to 2 MiB.
const READ_BYTES: usize = 64 * 1024;

/// What went wrong with the output folder. No text here has a path: callers show it to clients.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full, or a quota or size limit is reached.
    #[error("the output folder has no room left")]
    Full(#[source] io::Error),
    /// No permission, or a read-only file system.
    #[error("the output folder can't be written")]
    ReadOnly(#[source] io::Error),
    /// Not there, not a folder, or a link where none may be.
    #[error("the output folder is missing")]
    Missing(#[source] io::Error),
    /// No process has prepared the folder, which has no mark: it may be another one than the exports'.
    #[error("the output folder has no `{MARK}`, so no service has used it: does OUTPUT_DIR name the right one?")]
    Unused,
    /// Another folder is in the place of the one that this process prepared.
    #[error("the `{MARK}` of the output folder {0}: mount the right disk, or restart to adopt this folder")]
    Replaced(&'static str),
    /// The file is in another destination than this one.
    #[error("the file is in another output folder")]
    Elsewhere,
    /// Anything else that the system reports.
    #[error("the output folder failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        // No stable `ErrorKind` has this one.
        if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
            return Error::Missing(error);
        }
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Error::Full(error)
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::ReadOnly(error),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::Missing(error),
            _ => Error::Io(error),
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Error {
        io::Error::from(errno).into()
    }
}

/// How a publication went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// The file stands under its final name, by this call or an earlier one.
    Done,
    /// Another file has that name.
    Taken,
    /// The file is in the folder under no name.
    Gone,
}

/// Where files go. Clones share their limits.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A folder on a disk of this host, whose operations block.
    Folder(FolderOnThreads),
}

/// A folder, and the threads on which its operations may block.
#[derive(Clone, Debug)]
pub struct FolderOnThreads {
    folder: Arc<Folder>,
    threads: Threads,
}

impl FolderOnThreads {
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let folder = Arc::clone(&self.folder);
        self.threads.run(move || work(&folder)).await
    }
}

impl From<Folder> for Destination {
    fn from(folder: Folder) -> Destination {
        Destination::Folder(FolderOnThreads { folder: Arc::new(folder), threads: Threads::new(LIMITS) })
    }
}

impl Destination {
    /// The same destination for another caller, whom these limits hold.
    pub fn limited(&self, limits: Limits) -> Destination {
        match self {
            Destination::Folder(FolderOnThreads { folder, .. }) => {
                let folder = Arc::clone(folder);
                Destination::Folder(FolderOnThreads { folder, threads: Threads::new(limits) })
            }
        }
    }

    /// The destination's id, which is the same to every process that has this destination.
    ///
    /// # Errors
    /// If there is none and none can be made, or it is another one than before.
    pub async fn id(&self) -> Result<Uuid, Error> {
        match self {
            Destination::Folder(folder) => folder.run(Folder::destination_id).await,
        }
    }

    /// Whether a file can be written now.
    ///
    /// # Errors
    /// If it can't.
    pub async fn require_room(&self) -> Result<(), Error> {
        match self {
            Destination::Folder(folder) => folder.run(Folder::require_room).await,
        }
    }

    /// What makes the drafts of an attempt.
    pub fn drafts(&self, hidden: HiddenFile) -> Drafts {
        Drafts { destination: self.clone(), hidden }
    }

    /// Removes the draft of an attempt that has ended; one that isn't there is fine.
    ///
    /// # Errors
    /// If the destination fails.
    pub async fn abort(&self, hidden: HiddenFile) -> Result<(), Error> {
        match self {
            Destination::Folder(folder) => folder.run(move |folder| folder.remove_hidden(&hidden)).await,
        }
    }

    /// Gives a staged file its final name, durably. Never replaces a file. May be called again after a crash at any point, by any
    /// process that has this destination.
    ///
    /// # Errors
    /// If the file is elsewhere or the destination fails. The file may have its name then, which perhaps doesn't survive a crash.
    pub async fn publish(&self, record: &FileRecord) -> Result<Published, Error> {
        let (file, name) = (record.staged.clone(), record.name.clone());
        match self {
            Destination::Folder(folder) => folder.run(move |folder| folder.publish(&file, &name)).await,
        }
    }

    /// Opens a published file. `None`: it isn't there any more, or another one is in its place.
    ///
    /// # Errors
    /// If the file is elsewhere or the destination fails.
    pub async fn open(&self, record: &FileRecord) -> Result<Option<PublishedFile>, Error> {
        let (file, name) = (record.staged.clone(), record.name.clone());
        match self {
            Destination::Folder(folder) => {
                let opened = folder.run(move |folder| folder.open(&file, &name)).await?;
                Ok(opened.map(|file| PublishedFile { file }))
            }
        }
    }

    /// Removes a published file if it is still the one that was recorded; what somebody put in its place stays.
    ///
    /// # Errors
    /// If the file is elsewhere or the destination fails.
    pub async fn remove(&self, record: &FileRecord) -> Result<(), Error> {
        let (file, name) = (record.staged.clone(), record.name.clone());
        match self {
            Destination::Folder(folder) => folder.run(move |folder| folder.remove(&file, &name)).await,
        }
    }

    /// Removes a staged file that nobody may publish any more, wherever a publisher left it.
    ///
    /// # Errors
    /// If the file is elsewhere or the destination fails.
    pub async fn discard(&self, record: &FileRecord) -> Result<(), Error> {
        let (file, name) = (record.staged.clone(), record.name.clone());
        match self {
            Destination::Folder(folder) => folder.run(move |folder| folder.discard(&file, &name)).await,
        }
    }

    /// The hidden files that there are, of live attempts and other databases too.
    ///
    /// # Errors
    /// If the destination fails.
    pub async fn hidden_files(&self) -> Result<Vec<HiddenFile>, Error> {
        match self {
            Destination::Folder(folder) => folder.run(Folder::hidden_files).await,
        }
    }

    /// Removes a hidden file; where `unwritten_for` is given, only one that nobody has written for so long. True: it is removed.
    ///
    /// # Errors
    /// If the destination fails.
    pub async fn sweep(&self, hidden: HiddenFile, unwritten_for: Option<Duration>) -> Result<bool, Error> {
        match self {
            Destination::Folder(folder) => folder.run(move |folder| folder.sweep(&hidden, unwritten_for)).await,
        }
    }

    /// The marker of a database's lane; `None` if there is none, [`Marker::unreadable`] if something else has its name, or nobody may
    /// read it.
    ///
    /// # Errors
    /// If the destination fails.
    pub async fn marker(
        &self,
        database: &DatabaseId,
        consumer: &ConsumerId,
        dataset: &str,
    ) -> Result<Option<Marker>, Error> {
        let (database, consumer, dataset) = (database.clone(), consumer.clone(), dataset.to_owned());
        match self {
            Destination::Folder(folder) => {
                folder.run(move |folder| folder.marker(&database, &consumer, &dataset)).await
            }
        }
    }

    /// The markers of a database's lanes, one for each consumer. Where one can't be read for the moment, it is `None` as well.
    ///
    /// # Errors
    /// If the destination doesn't answer in time.
    pub async fn markers(
        &self,
        database: &DatabaseId,
        consumers: &[&ConsumerId],
        dataset: &str,
    ) -> Result<Vec<Option<Marker>>, Error> {
        let (database, dataset) = (database.clone(), dataset.to_owned());
        let consumers: Vec<_> = consumers.iter().map(|consumer| (*consumer).clone()).collect();
        match self {
            Destination::Folder(folder) => {
                let read = move |folder: &Folder| {
                    let marker = |consumer| folder.marker(&database, consumer, &dataset).unwrap_or(None);
                    Ok(consumers.iter().map(marker).collect())
                };
                folder.run(read).await
            }
        }
    }

    /// Makes it durable that this file is the last one of its lane that is handed out, in place of no marker or of that of `replaced`.
    /// Called before the file has its name. Returns another marker that stands there, and that it left: what that tells of is perhaps
    /// known to nobody else.
    ///
    /// # Errors
    /// If the destination fails. The marker is the one before then, or this one.
    pub async fn mark(
        &self,
        record: &FileRecord,
        consumer: &ConsumerId,
        replaced: Option<JobId>,
    ) -> Result<Option<Marker>, Error> {
        let FileRecord { database, dataset, .. } = record;
        let (database, consumer, dataset) = (database.clone(), consumer.clone(), dataset.clone());
        let marker = record.marker();
        match self {
            Destination::Folder(folder) => {
                folder.run(move |folder| folder.mark(&database, &consumer, &dataset, &marker, replaced)).await
            }
        }
    }
}

/// Makes the drafts of one attempt.
#[derive(Clone, Debug)]
pub struct Drafts {
    destination: Destination,
    hidden: HiddenFile,
}

impl Drafts {
    /// Begins the attempt's file.
    ///
    /// # Errors
    /// If the destination fails or has no room, or the attempt's file was begun before.
    pub async fn create(&self) -> Result<Draft, Error> {
        let hidden = self.hidden.clone();
        match &self.destination {
            Destination::Folder(folder) => folder.run(move |folder| folder.create(&hidden)).await,
        }
    }
}

/// A published file, open: the very one that was exported.
#[derive(Debug)]
pub struct PublishedFile {
    file: File,
}

impl PublishedFile {
    /// `length` bytes from `from` on.
    ///
    /// # Errors
    /// If the file can't be read there.
    pub async fn part(self, from: u64, length: u64) -> Result<impl AsyncRead, Error> {
        let mut file = tokio::fs::File::from_std(self.file);
        file.set_max_buf_size(READ_BYTES);
        file.seek(SeekFrom::Start(from)).await?;
        Ok(file.take(length))
    }
}
