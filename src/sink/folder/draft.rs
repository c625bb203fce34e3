//! A file while it is written: hashed on the way, and taken by the disk as it grows.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use ring::digest;
use rustix::io::Errno;
use uuid::Uuid;

use crate::failpoint;
use crate::file::StagedFile;
use crate::sink::folder::entries::{identity, identity_at, remove_at, require_room};
use crate::sink::{Draft, Error};

/// Bytes that are written before the disk is asked to take them. Asked at the end alone, it would keep the export waiting for all.
const AHEAD_BYTES: u64 = 16 << 20;
/// Bytes that are written between two looks at what is free.
const LOOK_EVERY: u64 = 8 << 20;

/// A file that is being written, on a thread that may block. Dropped before it is staged, it is removed.
pub(in crate::sink) struct FolderDraft {
    destination: Uuid,
    path: Option<StagedPath>,
    file: File,
    sha256: digest::Context,
    size: u64,
    /// Bytes of it that the disk was asked to take.
    asked: u64,
    sync: Option<JoinHandle<io::Result<()>>>,
}

struct StagedPath {
    dir: OwnedFd,
    name: String,
}

impl FolderDraft {
    /// The empty file of this name in this folder.
    pub(super) fn new(destination: Uuid, dir: OwnedFd, name: String, file: File) -> FolderDraft {
        let path = Some(StagedPath { dir, name });
        let sha256 = digest::Context::new(&digest::SHA256);
        FolderDraft { destination, path, file, sha256, size: 0, asked: 0, sync: None }
    }

    /// Lets the disk take what is written by now, while more is written. One at a time: a slow disk isn't asked for more.
    fn sync_ahead(&mut self) -> Result<(), Error> {
        if self.sync.as_ref().is_some_and(|running| !running.is_finished()) {
            return Ok(());
        }
        self.join_sync()?;
        self.asked = self.size;
        // Where no descriptor or thread is to spare, `stage` syncs all of it.
        let Ok(file) = self.file.try_clone() else { return Ok(()) };
        self.sync = std::thread::Builder::new().name("sync".to_owned()).spawn(move || file.sync_data()).ok();
        Ok(())
    }

    /// The system tells of a failed sync once, to whoever syncs next, so the error of that thread must not be lost.
    fn join_sync(&mut self) -> Result<(), Error> {
        let Some(running) = self.sync.take() else { return Ok(()) };
        Ok(running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
    }
}

impl Draft for FolderDraft {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        failpoint!("sink.write", Err(Error::Full(Errno::NOSPC.into())));
        self.file.write_all(bytes)?;
        self.sha256.update(bytes);
        let looked = self.size / LOOK_EVERY;
        self.size += bytes.len() as u64;
        if self.size - self.asked >= AHEAD_BYTES {
            self.sync_ahead()?;
        }
        if self.size / LOOK_EVERY == looked { Ok(()) } else { require_room(&self.file) }
    }

    fn size(&self) -> u64 {
        self.size
    }

    /// The file keeps its hidden name. After a failed sync it is removed, never synced again: a second fsync may succeed although the
    /// first one lost pages.
    fn stage(mut self: Box<Self>) -> Result<StagedFile, Error> {
        failpoint!("sink.fsync", Err(Error::Io(Errno::IO.into())));
        self.join_sync()?;
        self.file.sync_all()?;
        let identity = identity(&self.file)?;
        let path = self.path.take().expect("only `stage` takes the path, and it consumes the draft");
        if identity_at(&path.dir, &path.name)?.as_ref() != Some(&identity) || identity.bytes != self.size {
            return Err(Error::Io(io::Error::other("somebody removed or changed the staged file")));
        }
        let sha256 = std::mem::replace(&mut self.sha256, digest::Context::new(&digest::SHA256)).finish();
        let hex = hex::encode(sha256);
        // The hidden name must survive a power cut as well: the commit that follows records it.
        rustix::fs::fsync(&path.dir)?;
        Ok(StagedFile { destination: self.destination, name: path.name, sha256: hex, identity })
    }
}

impl Drop for FolderDraft {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        if let Err(errno) = remove_at(&path.dir, &path.name) {
            // The sweeper takes it later.
            tracing::warn!(event = "draft_left_behind", file = path.name, error = %errno);
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

        // The system tells of it once: who begins the next sync must not forget the last one's.
        let (_dir, mut it) = draft();
        let failed = std::thread::spawn(|| Err(io::ErrorKind::StorageFull.into()));
        while !failed.is_finished() {
            std::thread::yield_now();
        }
        it.sync = Some(failed);
        assert!(matches!(it.write(&vec![b'x'; AHEAD_BYTES as usize]), Err(Error::Full(_))));
    }

    #[test]
    fn a_large_draft_goes_to_the_disk_while_it_is_written() {
        let (dir, mut it) = draft();
        for _ in 0..3 * (AHEAD_BYTES >> 20) {
            it.write(&[b'x'; 1 << 20]).unwrap();
        }
        assert!(it.asked >= AHEAD_BYTES && it.sync.is_some());
        let file = it.stage().unwrap();
        assert_eq!(std::fs::metadata(dir.path().join(&file.name)).unwrap().len(), 3 * AHEAD_BYTES);
    }
}
