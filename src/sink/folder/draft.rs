//! A draft in a folder: a hidden file that is hashed while it is written, and synced to disk as it grows.

use std::fs::File;
use std::io::{self, Write};
use std::thread::JoinHandle;

use ring::digest;
use rustix::io::Errno;
use uuid::Uuid;

use crate::failpoint;
use crate::file::StagedFile;
use crate::sink::folder::entries::{Dir, identity, require_room};
use crate::sink::{Draft, Error};
use crate::telemetry::chain;

/// The bytes that are written between two syncs. A single sync at the end would make the export wait for all bytes at
/// once.
const SYNC_EVERY_BYTES: u64 = 16 << 20;
/// The bytes that are written between two checks of the free room.
const CHECK_EVERY_BYTES: u64 = 8 << 20;

/// A hidden file that is being written. Removed if it is dropped before it is staged.
pub(super) struct FolderDraft {
    destination: Uuid,
    path: Option<StagedPath>,
    file: File,
    sha256: digest::Context,
    size: u64,
    /// The size at the last sync that was begun.
    synced: u64,
    sync: Option<JoinHandle<io::Result<()>>>,
}

struct StagedPath {
    dir: Dir,
    name: String,
}

impl FolderDraft {
    /// Returns a draft of the empty file with this name.
    pub(super) fn new(destination: Uuid, dir: Dir, name: String, file: File) -> FolderDraft {
        let path = Some(StagedPath { dir, name });
        let sha256 = digest::Context::new(&digest::SHA256);
        FolderDraft { destination, path, file, sha256, size: 0, synced: 0, sync: None }
    }

    /// Begins to sync the bytes so far on a thread, while more are written. At most one sync runs at a time.
    fn sync_ahead(&mut self) -> Result<(), Error> {
        if self.sync.as_ref().is_some_and(|running| !running.is_finished()) {
            return Ok(());
        }
        self.join_sync()?;
        self.synced = self.size;
        // Without a spare descriptor or thread, `stage` syncs all bytes.
        let Ok(file) = self.file.try_clone() else { return Ok(()) };
        self.sync = std::thread::Builder::new().name("sync".to_owned()).spawn(move || file.sync_data()).ok();
        Ok(())
    }

    /// Returns the result of the running sync. The system reports a failed sync only once, so its error must not be
    /// lost.
    fn join_sync(&mut self) -> Result<(), Error> {
        let Some(running) = self.sync.take() else { return Ok(()) };
        let synced = running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        synced.map_err(self.cannot("sync"))
    }

    fn cannot(&self, verb: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = self.path.as_ref().expect("only `stage` takes the path, and it consumes the draft");
        path.dir.cannot(verb, &path.name)
    }
}

impl Draft for FolderDraft {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        failpoint!("sink.write", Err(Error::Full(Errno::NOSPC.into())));
        self.file.write_all(bytes).map_err(self.cannot("write"))?;
        self.sha256.update(bytes);
        let looked = self.size / CHECK_EVERY_BYTES;
        self.size += bytes.len() as u64;
        if self.size - self.synced >= SYNC_EVERY_BYTES {
            self.sync_ahead()?;
        }
        if self.size / CHECK_EVERY_BYTES == looked { Ok(()) } else { require_room(&self.file) }
    }

    fn size(&self) -> u64 {
        self.size
    }

    /// The file keeps its hidden name. After a failed sync it is removed, never synced again: a second fsync may
    /// succeed although the first one lost pages.
    fn stage(mut self: Box<Self>) -> Result<StagedFile, Error> {
        failpoint!("sink.fsync", Err(Error::Io(Errno::IO.into())));
        self.join_sync()?;
        self.file.sync_all().map_err(self.cannot("sync"))?;
        let identity = identity(&self.file).map_err(self.cannot("look up"))?;
        let path = self.path.take().expect("only `stage` takes the path, and it consumes the draft");
        if path.dir.identity(&path.name)?.as_ref() != Some(&identity) || identity.bytes != self.size {
            let changed = io::Error::other("somebody removed or changed it");
            return Err(path.dir.cannot("stage", &path.name)(changed));
        }
        let sha256 = std::mem::replace(&mut self.sha256, digest::Context::new(&digest::SHA256)).finish();
        let hex = hex::encode(sha256);
        // The hidden name must survive a power cut as well: the commit that follows records it.
        path.dir.sync()?;
        Ok(StagedFile { destination: self.destination, name: path.name, sha256: hex, identity })
    }
}

impl Drop for FolderDraft {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        if let Err(error) = path.dir.remove(&path.name) {
            // The sweep removes it later.
            tracing::warn!(event = "draft_left_behind", file = path.name, error = chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::folder::tests::{folder, hidden};

    fn draft() -> (tempfile::TempDir, Box<FolderDraft>) {
        let (dir, folder) = folder();
        let draft = folder.create(&hidden()).unwrap();
        (dir, Box::new(draft))
    }

    #[test]
    fn a_sync_that_failed_while_more_was_written_fails_the_draft() {
        let (dir, mut it) = draft();
        let name = it.path.as_ref().unwrap().name.clone();
        it.sync = Some(std::thread::spawn(|| Err(io::ErrorKind::StorageFull.into())));
        assert!(matches!(it.stage(), Err(Error::Full(_))));
        assert!(!dir.path().join(name).exists());

        // The system reports it once, so the next sync must not drop the error of the last one.
        let (_dir, mut it) = draft();
        let failed = std::thread::spawn(|| Err(io::ErrorKind::StorageFull.into()));
        while !failed.is_finished() {
            std::thread::yield_now();
        }
        it.sync = Some(failed);
        assert!(matches!(it.write(&vec![b'x'; SYNC_EVERY_BYTES as usize]), Err(Error::Full(_))));
    }

    #[test]
    fn a_large_draft_goes_to_the_disk_while_it_is_written() {
        let (dir, mut it) = draft();
        for _ in 0..3 * (SYNC_EVERY_BYTES >> 20) {
            it.write(&[b'x'; 1 << 20]).unwrap();
        }
        assert!(it.synced >= SYNC_EVERY_BYTES && it.sync.is_some());
        let file = it.stage().unwrap();
        assert_eq!(std::fs::metadata(dir.path().join(&file.name)).unwrap().len(), 3 * SYNC_EVERY_BYTES);
    }
}
