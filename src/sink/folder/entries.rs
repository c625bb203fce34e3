//! The entries of a folder, each by one name below its descriptor. Symbolic links are not followed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::failpoint;
use crate::file::hidden::HiddenFile;
use crate::file::{FileIdentity, FileLocation};
use crate::sink::Error;
use crate::sink::found::Found;

/// What the process's umask is taken from, where nobody set a mode.
const OPEN_TO_ALL: Mode = Mode::from_raw_mode(0o666);

/// What an export leaves free on its disk, in bytes. Postgres may live there too, and stops when it can't write.
const LEAST_ROOM: u64 = 32 << 20;

/// Whether what an ordinary user may still write is more than what has to stay free.
pub(super) fn require_room(place: &impl AsFd) -> Result<(), Error> {
    let disk = rustix::fs::fstatvfs(place)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < LEAST_ROOM { Err(Error::Full(Errno::NOSPC.into())) } else { Ok(()) }
}

/// Makes a file. With a mode of its own it is closed to all others until it has that, so that the umask opens it to nobody.
pub(super) fn create(dir: &OwnedFd, name: &str, mode: Option<Mode>) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, mode.map_or(OPEN_TO_ALL, |mode| mode & Mode::RWXU))?;
    if let Some(mode) = mode
        && let Err(errno) = rustix::fs::fchmod(&file, mode)
    {
        remove_at(dir, name)?;
        return Err(errno);
    }
    Ok(file.into())
}

/// Makes a small file: its text goes to disk under a hidden name, and `give_name` gives it its own. The hidden one is gone in the end,
/// unless the process dies, or the disk does. What it is called by then may not survive a crash if this fails.
pub(super) fn write_small<T>(
    dir: &OwnedFd,
    hidden: &HiddenFile,
    mode: Option<Mode>,
    text: &str,
    give_name: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let mut file = create(dir, &hidden.name, mode)?;
    let named = (|| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        failpoint!("sink.drafted", Err(Error::Io(Errno::IO.into())));
        give_name()
    })();
    remove_at(dir, &hidden.name)?;
    let named = named?;
    rustix::fs::fsync(dir)?;
    Ok(named)
}

/// Opens what has this name. A link is not followed, and a pipe that somebody planted doesn't hang the caller.
pub(super) fn open_at(dir: impl AsFd, name: &str) -> Result<Found<File>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        // A link; a socket.
        Err(Errno::LOOP | Errno::NXIO) => return Ok(Found::NoFile),
        Err(errno) => return Err(errno),
    };
    let found = rustix::fs::fstat(&file)?;
    let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    Ok(if is_file { Found::File(found.st_size.unsigned_abs(), file.into()) } else { Found::NoFile })
}

/// Whether an export's file may be called so: one name, that leads nowhere else and isn't hidden, of characters that stand in
/// quotes in a header as they are. All names that we give are so.
pub(super) fn is_own_name(name: &str) -> bool {
    let is_plain = |byte: u8| (byte.is_ascii_graphic() || byte == b' ') && !matches!(byte, b'/' | b'"' | b'\\');
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(is_plain)
}

pub(super) fn identity(file: &File) -> io::Result<FileIdentity> {
    let found = file.metadata()?;
    let modified_ns = found.mtime() * 1_000_000_000 + found.mtime_nsec();
    let location = FileLocation::Folder { inode: found.ino(), modified_ns };
    Ok(FileIdentity { bytes: found.size(), location })
}

/// The file of this name, whether or not it may be read. A link, a folder or a pipe is no file of ours.
pub(super) fn identity_at(dir: &OwnedFd, name: impl rustix::path::Arg) -> Result<Option<FileIdentity>, Error> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile => Ok(None),
        Ok(found) => {
            let modified_ns = found.st_mtime * 1_000_000_000 + found.st_mtime_nsec as i64;
            let location = FileLocation::Folder { inode: found.st_ino, modified_ns };
            Ok(Some(FileIdentity { bytes: found.st_size.unsigned_abs(), location }))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The name under which the recorded file stands: its hidden one, or any that a file of ours may have.
pub(super) fn find(dir: &OwnedFd, recorded: &FileIdentity) -> Result<Option<String>, Error> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        let Ok(name) = entry?.file_name().to_owned().into_string() else { continue };
        let may_be_ours = HiddenFile::read(&name).is_some() || is_own_name(&name);
        if may_be_ours && identity_at(dir, &*name)?.as_ref() == Some(recorded) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Removes a file. False: there was none.
pub(super) fn remove_at(dir: &OwnedFd, name: &str) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(false),
        removed => removed.map(|()| true),
    }
}

pub(super) fn rename_without_replacing(dir: &OwnedFd, from: &str, to: &str) -> Result<(), Errno> {
    match rustix::fs::renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
        // The file system doesn't know the flag.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            rustix::fs::linkat(dir, from, dir, to, AtFlags::empty())?;
            rustix::fs::unlinkat(dir, from, AtFlags::empty())
        }
        renamed => renamed,
    }
}
