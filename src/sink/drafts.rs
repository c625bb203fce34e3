//! Files while they are written.

use tokio_util::sync::DropGuard;

use crate::file::StagedFile;
use crate::file::hidden::HiddenFile;
use crate::file::name::FileName;
#[cfg(feature = "buckets")]
use crate::sink::bucket;
use crate::sink::{Destination, Error, folder};

/// Makes the drafts of one attempt.
#[derive(Debug)]
pub struct Drafts {
    pub(super) destination: Destination,
    pub(super) hidden: HiddenFile,
    #[cfg_attr(not(feature = "buckets"), expect(dead_code, reason = "a folder has one name for a file"))]
    pub(super) name: FileName,
    #[cfg_attr(not(feature = "buckets"), expect(dead_code, reason = "a folder makes nobody wait for long"))]
    pub(super) stopped: DropGuard,
}

impl Drafts {
    /// Begins a file of the attempt, its parts in their order from 1.
    ///
    /// # Errors
    /// If the destination fails or has no room, or this file was begun before.
    pub async fn create(&self, part: u32) -> Result<Draft, Error> {
        let hidden = if part == 1 { self.hidden.clone() } else { self.hidden.with_part(part) };
        match &self.destination {
            Destination::Folder(folder) => Ok(Draft::Folder(folder.run(move |folder| folder.create(&hidden)).await?)),
            #[cfg(feature = "buckets")]
            Destination::Bucket(bucket) => {
                let Drafts { name, stopped, .. } = self;
                let draft = bucket.run(async |bucket| bucket.create(&hidden, name, stopped.token().clone()).await);
                Ok(Draft::Bucket(draft.await?))
            }
        }
    }
}

/// A file that is being written, by a thread that may block. Dropped before it is staged, it is removed, by the destination itself or by
/// its sweep.
pub enum Draft {
    /// In a folder.
    Folder(folder::Draft),
    /// In a bucket.
    #[cfg(feature = "buckets")]
    Bucket(bucket::Draft),
}

impl Draft {
    /// Appends bytes. Where the destination is slower than the caller, it waits.
    ///
    /// # Errors
    /// If they can't all be written; the draft is then of no more use.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Draft::Folder(draft) => draft.write(bytes),
            #[cfg(feature = "buckets")]
            Draft::Bucket(draft) => draft.write(bytes),
        }
    }

    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        match self {
            Draft::Folder(draft) => draft.size(),
            #[cfg(feature = "buckets")]
            Draft::Bucket(draft) => draft.size(),
        }
    }

    /// Makes the bytes durable. Nobody sees the file until it is published.
    ///
    /// # Errors
    /// If the destination fails; the file is removed then.
    pub fn stage(self) -> Result<StagedFile, Error> {
        match self {
            Draft::Folder(draft) => draft.stage(),
            #[cfg(feature = "buckets")]
            Draft::Bucket(draft) => draft.stage(),
        }
    }
}
