//! A draft in a folder: a hidden file that is hashed while it is written, block by block on a thread.
//!
//! Blocks go around the page cache where the file system allows it. That costs less processor time, and the pages of
//! the exported table stay in memory. Elsewhere the file is synced to disk as it grows: a single sync at the end would
//! make the export wait for all bytes at once.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::mpsc;
use std::thread::JoinHandle;

use ring::digest;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use uuid::Uuid;

use crate::folder::entries::{Dir, identity, require_room};
use crate::{Draft, Error, StagedFile};
use failpoint::failpoint;

/// The size of a block. A file that is smaller is written at once, when it is staged.
const BLOCK_BYTES: usize = 1 << 20;
/// The alignment of a block in memory and in the file. No disk needs more.
const ALIGNMENT: usize = 4096;
/// The bytes that are written through the page cache between two syncs.
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
    block: FileBlock,
    /// Writes full blocks. `None` before the first one.
    writer: Option<BlockWriter>,
    /// The size at the last sync that was begun.
    synced: u64,
    sync: Option<JoinHandle<io::Result<()>>>,
}

struct StagedPath {
    dir: Dir,
    name: String,
}

struct FileBlock {
    bytes: Vec<u8>,
    /// The place of the aligned bytes that are used.
    used: Range<usize>,
}

impl FileBlock {
    fn new() -> FileBlock {
        let bytes = vec![0; BLOCK_BYTES + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        FileBlock { bytes, used: start..start }
    }

    /// Takes as many bytes as there is room for. Returns the rest.
    fn fill<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let room = BLOCK_BYTES - self.used.len();
        let (now, rest) = bytes.split_at(room.min(bytes.len()));
        self.bytes[self.used.end..][..now.len()].copy_from_slice(now);
        self.used.end += now.len();
        rest
    }

    fn is_full(&self) -> bool {
        self.used.len() == BLOCK_BYTES
    }

    /// Writes its bytes and empties it. Writes through the page cache what the file system doesn't take around it.
    fn write_to(&mut self, mut file: &File) -> io::Result<()> {
        let start = self.used.start;
        while !self.used.is_empty() {
            match file.write(&self.bytes[self.used.clone()]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.used.start += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) && is_direct(file)? => {
                    set_direct(file, false)?;
                }
                Err(error) => return Err(error),
            }
        }
        self.used = start..start;
        Ok(())
    }
}

fn is_direct(file: &File) -> io::Result<bool> {
    Ok(fcntl_getfl(file)?.contains(OFlags::DIRECT))
}

/// Has the writes of a file go around the page cache, or through it again.
fn set_direct(file: &File, is_direct: bool) -> Result<(), Errno> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, is_direct);
    fcntl_setfl(file, flags)
}

/// Writes full blocks, on a thread if there is one to spare.
struct BlockWriter {
    /// True if blocks go around the page cache.
    is_direct: bool,
    thread: Option<WriterThread>,
}

struct WriterThread {
    full: mpsc::Sender<FileBlock>,
    written: mpsc::Receiver<io::Result<FileBlock>>,
    is_busy: bool,
}

impl BlockWriter {
    fn new(file: &File) -> BlockWriter {
        BlockWriter { is_direct: set_direct(file, true).is_ok(), thread: WriterThread::start(file).ok() }
    }

    /// Takes a full block, and leaves an empty one once the block before is written.
    fn write(&mut self, block: &mut FileBlock, file: &File) -> io::Result<()> {
        let Some(thread) = &mut self.thread else { return block.write_to(file) };
        let empty = thread.wait()?.unwrap_or_else(FileBlock::new);
        thread.full.send(std::mem::replace(block, empty)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        thread.is_busy = true;
        Ok(())
    }

    /// Waits until all blocks are written. From then on the file is written through the page cache.
    fn finish(&mut self, file: &File) -> io::Result<()> {
        if let Some(thread) = &mut self.thread {
            thread.wait()?;
        }
        Ok(set_direct(file, false)?)
    }
}

impl WriterThread {
    /// Starts a thread. It ends when this value is dropped.
    fn start(file: &File) -> io::Result<WriterThread> {
        let file = file.try_clone()?;
        let (full, blocks) = mpsc::channel::<FileBlock>();
        let (done, written) = mpsc::channel();
        let write = move || {
            for mut block in blocks {
                let _ = done.send(block.write_to(&file).map(|()| block));
            }
        };
        std::thread::Builder::new().name("write".to_owned()).spawn(write)?;
        Ok(WriterThread { full, written, is_busy: false })
    }

    /// Waits until the thread has written its block, and returns it.
    fn wait(&mut self) -> io::Result<Option<FileBlock>> {
        if !std::mem::take(&mut self.is_busy) {
            return Ok(None);
        }
        self.written.recv().map_err(|_| io::ErrorKind::BrokenPipe)?.map(Some)
    }
}

impl FolderDraft {
    /// Returns a draft of the empty file with this name.
    pub(super) fn new(destination: Uuid, dir: Dir, name: String, file: File) -> FolderDraft {
        let path = Some(StagedPath { dir, name });
        let (sha256, block) = (digest::Context::new(&digest::SHA256), FileBlock::new());
        FolderDraft { destination, path, file, sha256, size: 0, block, writer: None, synced: 0, sync: None }
    }

    /// Begins to write the full block, while the next one is filled.
    fn write_ahead(&mut self) -> Result<(), Error> {
        let writer = self.writer.get_or_insert_with(|| BlockWriter::new(&self.file));
        let (written, is_direct) = (writer.write(&mut self.block, &self.file), writer.is_direct);
        written.map_err(self.cannot("write"))?;
        if !is_direct && self.size - self.synced >= SYNC_EVERY_BYTES { self.sync_ahead() } else { Ok(()) }
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
        self.sha256.update(bytes);
        let looked = self.size / CHECK_EVERY_BYTES;
        self.size += bytes.len() as u64;
        let mut rest = self.block.fill(bytes);
        while self.block.is_full() {
            self.write_ahead()?;
            rest = self.block.fill(rest);
        }
        if self.size / CHECK_EVERY_BYTES == looked { Ok(()) } else { Ok(require_room(&self.file)?) }
    }

    fn size(&self) -> u64 {
        self.size
    }

    /// The file keeps its hidden name. After a failed sync it is removed, never synced again: a second fsync may
    /// succeed although the first one lost pages.
    fn stage(mut self: Box<Self>) -> Result<StagedFile, Error> {
        failpoint!("sink.fsync", Err(Error::Io(Errno::IO.into())));
        if let Some(writer) = &mut self.writer {
            let finished = writer.finish(&self.file);
            finished.map_err(self.cannot("write"))?;
        }
        let written = self.block.write_to(&self.file);
        written.map_err(self.cannot("write"))?;
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
            tracing::warn!(event = "draft_left_behind", file = path.name, error = %std::error::Error::source(&error).unwrap_or(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::tests::{folder, hidden};

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
        it.writer = Some(through_the_page_cache());
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
        it.writer = Some(through_the_page_cache());
        for _ in 0..3 * (SYNC_EVERY_BYTES >> 20) {
            it.write(&[b'x'; 1 << 20]).unwrap();
        }
        assert!(it.synced >= SYNC_EVERY_BYTES && it.sync.is_some());
        let file = it.stage().unwrap();
        assert_eq!(std::fs::metadata(dir.path().join(&file.name)).unwrap().len(), 3 * SYNC_EVERY_BYTES);
    }

    #[test]
    fn a_draft_has_the_bytes_that_were_written_around_the_page_cache_and_through_it() {
        for writer in [None, Some(through_the_page_cache())] {
            let (dir, mut it) = draft();
            it.writer = writer;
            let piece: Vec<u8> = (0..777_777u32).map(|n| (n % 251) as u8).collect();
            for _ in 0..5 {
                it.write(&piece).unwrap();
            }
            let file = it.stage().unwrap();
            assert_eq!(std::fs::read(dir.path().join(&file.name)).unwrap(), piece.repeat(5));
        }
    }

    #[test]
    fn a_block_that_cannot_be_written_fails_the_draft() {
        for is_staged in [true, false] {
            let (dir, mut it) = draft();
            let ((full, _blocks), (done, written)) = (mpsc::channel(), mpsc::channel());
            done.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
            it.writer =
                Some(BlockWriter { is_direct: true, thread: Some(WriterThread { full, written, is_busy: true }) });
            let name = it.path.as_ref().unwrap().name.clone();
            let failed = match is_staged {
                true => it.stage().map(drop),
                false => it.write(&vec![b'x'; BLOCK_BYTES]),
            };
            assert!(matches!(failed, Err(Error::Full(_))), "{failed:?}");
            assert_eq!(dir.path().join(name).exists(), !is_staged);
        }
    }

    fn through_the_page_cache() -> BlockWriter {
        BlockWriter { is_direct: false, thread: None }
    }
}
