//! A folder that is read as it is found: any folder with manifests and files, of this service or copied from elsewhere.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
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
                Err(errno) => return Err(errno.into()),
            };
        }
        let above = folder.as_ref().map_or(self.0.as_fd(), AsFd::as_fd);
        Ok(open_at(above, name)?)
    }
}
