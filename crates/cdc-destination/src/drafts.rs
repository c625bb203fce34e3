//! Files that are being written.

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Destination, Error, FileName, HiddenFile, Limited, StagedFile, StallWatch};

/// Creates the drafts of one attempt. Dropping it stops the drafts.
#[derive(Debug)]
pub struct Drafts {
    destination: Limited,
    hidden: HiddenFile,
    name: FileName,
    stalls: StallWatch,
    stopped: DropGuard,
}

impl Drafts {
    /// Prepares the drafts of the attempt whose first hidden file is `hidden`. Creates nothing yet.
    pub fn new(destination: &Limited, hidden: HiddenFile, name: FileName, stalls: &StallWatch) -> Drafts {
        let stopped = CancellationToken::new().drop_guard();
        Drafts { destination: destination.clone(), hidden, name, stalls: stalls.clone(), stopped }
    }

    /// Creates the draft of a part. The caller creates the parts in order, from 1.
    pub async fn create(&self, part: u32) -> Result<Box<dyn Draft>, Error> {
        let hidden = if part == 1 { self.hidden.clone() } else { self.hidden.with_part(part) };
        let call = self.stalls.begin();
        let draft = self.destination.create(&hidden, &self.name, self.stopped.token()).await?;
        drop(call);
        Ok(Box::new(WatchedDraft { draft, stalls: self.stalls.clone() }))
    }
}

struct WatchedDraft {
    draft: Box<dyn Draft>,
    stalls: StallWatch,
}

impl Draft for WatchedDraft {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let _call = self.stalls.begin();
        self.draft.write(bytes)
    }

    fn size(&self) -> u64 {
        self.draft.size()
    }

    fn stage(self: Box<Self>) -> Result<StagedFile, Error> {
        let _call = self.stalls.begin();
        self.draft.stage()
    }
}

/// A file that is being written, by a thread that may block.
///
/// If it is dropped before it is staged, the destination removes it, or its next sweep does.
pub trait Draft: Send {
    /// Appends bytes. Blocks while the destination is slower than the caller.
    ///
    /// # Errors
    /// If the bytes can't all be written, leave too little room, or the attempt was stopped. The draft is of no more
    /// use then.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error>;

    fn size(&self) -> u64;

    /// Makes the bytes durable. Nobody sees the file until it is published.
    ///
    /// # Errors
    /// If the destination fails. The file is removed then.
    fn stage(self: Box<Self>) -> Result<StagedFile, Error>;
}
