//! Files while they are written.

use tokio_util::sync::DropGuard;

use crate::file::StagedFile;
use crate::file::hidden::HiddenFile;
use crate::file::name::FileName;
use crate::sink::{Destination, Error, Place};

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
    pub async fn create(&self, part: u32) -> Result<Box<dyn Draft>, Error> {
        let hidden = if part == 1 { self.hidden.clone() } else { self.hidden.with_part(part) };
        match &self.destination.place {
            Place::Folder(folder) => {
                let draft = self.destination.run(folder, move |folder| folder.create(&hidden));
                Ok(Box::new(draft.await?))
            }
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => {
                let Drafts { name, stopped, .. } = self;
                let draft = bucket.create(&hidden, name, stopped.token().clone());
                Ok(Box::new(self.destination.turns.wait(draft).await?))
            }
        }
    }
}

/// A file that is being written, by a thread that may block. Dropped before it is staged, it is removed, by the destination itself or by
/// its sweep.
pub trait Draft: Send {
    /// Appends bytes. Where the destination is slower than the caller, it waits.
    ///
    /// # Errors
    /// If they can't all be written, leave too little room, or nobody waits for the file any more; the draft is then of no more use.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error>;

    /// The number of bytes written so far.
    fn size(&self) -> u64;

    /// Makes the bytes durable. Nobody sees the file until it is published.
    ///
    /// # Errors
    /// If the destination fails; the file is removed then.
    fn stage(self: Box<Self>) -> Result<StagedFile, Error>;
}
