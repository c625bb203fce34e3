//! A folder that is read as it is found: any folder with manifests and files, of this service or copied from elsewhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::manifest;
use crate::sink::Error;
use crate::sink::folder::entries::open_at;
use crate::sink::found::Found;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A folder, open.
#[derive(Debug)]
pub struct Dir(OwnedFd);

impl Dir {
    pub(in crate::sink) fn open(path: &Path) -> Result<Dir, Error> {
        Ok(Dir(rustix::fs::openat(CWD, path, FOLDER, Mode::empty())?))
    }

    /// Requires that the folder still has a name, and that names in it can be looked up.
    pub(in crate::sink) fn require(&self) -> Result<(), Error> {
        if rustix::fs::fstat(&self.0)?.st_nlink == 0 {
            return Err(Error::Missing(io::Error::other("it was removed while it was read")));
        }
        match rustix::fs::statat(&self.0, ".", AtFlags::empty()) {
            Err(Errno::ACCESS) => Err(Error::ReadOnly(io::Error::other(format!(
                "it can be listed, but what is in it can't be opened: that takes the right x of the folder, which user {} hasn't",
                rustix::process::geteuid()
            )))),
            found => Ok(found.map(drop)?),
        }
    }

    /// Each call reads the folder from its beginning.
    pub(in crate::sink) fn manifests(&self) -> Result<impl Iterator<Item = Result<String, Error>> + use<>, Error> {
        let entries = rustix::fs::Dir::read_from(&self.0)?;
        Ok(entries.filter_map(|entry| match entry {
            // One that is no text can't be opened by that, and is told as what it is: nothing that can be read.
            Ok(entry) => Some(entry.file_name().to_string_lossy())
                .filter(|name| manifest::is_name_in_folder(name))
                .map(|name| Ok(name.into_owned())),
            Err(errno) => Some(Err(errno.into())),
        }))
    }

    /// Each folder on the way is opened from the one above it, so that no link leads out, whoever exchanges what.
    pub(in crate::sink) fn open_file(&self, name: &str) -> Result<Found<File>, Error> {
        let (folders, name) = name.rsplit_once('/').map_or((None, name), |(folders, name)| (Some(folders), name));
        let mut folder: Option<OwnedFd> = None;
        for part in folders.iter().flat_map(|folders| folders.split('/')) {
            let above = folder.as_ref().map_or(self.0.as_fd(), AsFd::as_fd);
            folder = match rustix::fs::openat(above, part, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(found) => Some(found),
                Err(Errno::NOENT) => return Ok(Found::Nothing),
                Err(Errno::LOOP | Errno::NOTDIR) => return Ok(Found::NoFile),
                Err(errno) => return Err(refused(above, part, errno)),
            };
        }
        let above = folder.as_ref().map_or(self.0.as_fd(), AsFd::as_fd);
        open_at(above, name).map_err(|errno| refused(above, name, errno))
    }
}

/// Why this name can't be opened. Who reads that later may be another user than the one who was refused.
fn refused(above: BorrowedFd<'_>, name: &str, errno: Errno) -> Error {
    let user = rustix::process::geteuid();
    match rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if errno == Errno::ACCESS => {
            let (owner, mode) = (found.st_uid, found.st_mode & 0o7777);
            let why = format!("user {user} may not read it: its owner is user {owner}, and its mode {mode:04o}");
            Error::ReadOnly(io::Error::other(why))
        }
        _ => errno.into(),
    }
}
