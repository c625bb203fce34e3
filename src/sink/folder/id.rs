//! The id of a folder, in a small file of the folder: a process with another disk doesn't take its jobs for its own.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use crate::sink::folder::entries::{create, remove_at, rename_without_replacing};
use crate::sink::{Error, MARK};

/// It has 36 characters and a line's end.
const ID_MAX_BYTES: u64 = 64;

pub(super) fn read(dir: &OwnedFd) -> Result<Option<Uuid>, Error> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, MARK, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let no_id = || Error::Io(io::Error::other(format!("{MARK} holds no id")));
    // Whoever may write to the folder may have made it a file without an end.
    if !file.metadata()?.is_file() {
        return Err(no_id());
    }
    let mut text = String::new();
    file.take(ID_MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > ID_MAX_BYTES {
        return Err(no_id());
    }
    Ok(Some(text.trim().parse().map_err(|_| no_id())?))
}

/// Writes the id whole and then names it, so that a replica that starts in the same moment reads all of it or none.
pub(super) fn make(dir: &OwnedFd, mode: Option<Mode>) -> Result<Uuid, Error> {
    let id = Uuid::new_v4();
    let name = format!("{MARK}.{id}");
    let mut file = create(dir, &name, mode)?;
    if let Err(error) = writeln!(file, "{id}").and_then(|()| file.sync_all()) {
        remove_at(dir, &name)?;
        return Err(error.into());
    }
    match rename_without_replacing(dir, &name, MARK) {
        Ok(()) => {
            rustix::fs::fsync(dir)?;
            Ok(id)
        }
        Err(Errno::EXIST) => {
            remove_at(dir, &name)?;
            read(dir)?.ok_or_else(|| Error::Io(io::Error::other(format!("{MARK} came and went"))))
        }
        Err(errno) => Err(errno.into()),
    }
}
