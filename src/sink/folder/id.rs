//! The id of a folder, in a small file of the folder. By the id a process with another disk knows that a job's files
//! are elsewhere.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use crate::sink::folder::entries::Dir;
use crate::sink::{DESTINATION_ID_FILE, Error};

/// The file has 36 characters and the end of the line.
const ID_MAX_BYTES: u64 = 64;

pub(super) fn read(dir: &Dir) -> Result<Option<Uuid>, Error> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&dir.fd, DESTINATION_ID_FILE, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(dir.cannot("open", DESTINATION_ID_FILE)(errno)),
    };
    let no_id = || dir.cannot("read", DESTINATION_ID_FILE)(io::Error::other("it holds no id"));
    // Anybody who may write to the folder can put an endless file there.
    if !file.metadata().map_err(dir.cannot("look up", DESTINATION_ID_FILE))?.is_file() {
        return Err(no_id());
    }
    let mut text = String::new();
    let read = file.take(ID_MAX_BYTES + 1).read_to_string(&mut text);
    read.map_err(dir.cannot("read", DESTINATION_ID_FILE))?;
    if text.len() as u64 > ID_MAX_BYTES {
        return Err(no_id());
    }
    Ok(Some(text.trim().parse().map_err(|_| no_id())?))
}

/// Gives the folder an id. Writes it whole before naming it, so a replica that starts at the same time reads all of it
/// or nothing.
pub(super) fn make(dir: &Dir) -> Result<Uuid, Error> {
    let id = Uuid::new_v4();
    let name = format!("{DESTINATION_ID_FILE}.{id}");
    let mut file = dir.create(&name)?;
    if let Err(error) = writeln!(file, "{id}").and_then(|()| file.sync_all()) {
        dir.remove(&name)?;
        return Err(dir.cannot("write", &name)(error));
    }
    match dir.rename_without_replacing(&name, DESTINATION_ID_FILE) {
        Ok(()) => {
            dir.sync()?;
            Ok(id)
        }
        Err(Errno::EXIST) => {
            dir.remove(&name)?;
            read(dir)?
                .ok_or_else(|| dir.cannot("read", DESTINATION_ID_FILE)(io::Error::other("it was removed meanwhile")))
        }
        Err(errno) => Err(dir.cannot("rename", &name)(errno)),
    }
}
