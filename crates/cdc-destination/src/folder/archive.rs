//! A folder as an [`Archive`]: any folder with manifests and files, also one that was copied from elsewhere.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::folder::entries::open_at;
use crate::{Archive, Error, Lookup};
use cdc_manifest::Manifest;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[derive(Debug)]
pub(crate) struct FolderArchive(OwnedFd);

impl FolderArchive {
    /// Opens the folder at `path`, if it can be listed and its files can be opened.
    pub(crate) fn open(path: &Path) -> Result<FolderArchive, Error> {
        let archive = FolderArchive(rustix::fs::openat(CWD, path, FOLDER, Mode::empty())?);
        archive.require()?;
        Ok(archive)
    }
}

impl Archive for FolderArchive {
    /// Checks that the folder still has a name, and that names in it can be looked up.
    fn require(&self) -> Result<(), Error> {
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

    fn readers(&self, cores: usize) -> usize {
        cores
    }

    fn failure(&self, error: io::Error) -> Error {
        error.into()
    }

    /// Each call reads the folder from its beginning.
    fn manifests(&self) -> Result<Box<dyn Iterator<Item = Result<String, Error>> + '_>, Error> {
        let entries = rustix::fs::Dir::read_from(&self.0)?;
        Ok(Box::new(entries.filter_map(|entry| {
            match entry {
                // A name that is not UTF-8 can't be opened by this text, and is reported as unreadable.
                Ok(entry) => Some(entry.file_name().to_string_lossy())
                    .filter(|name| Manifest::is_name_in_folder(name))
                    .map(|name| Ok(name.into_owned())),
                Err(errno) => Some(Err(errno.into())),
            }
        })))
    }

    fn leads_to(&self, url: &str, name: &str) -> bool {
        let path =
            url::Url::parse(url).ok().filter(|url| url.scheme() == "file").and_then(|url| url.to_file_path().ok());
        path.is_some_and(|path| path.ends_with(name))
    }

    /// Opens each folder on the way from the one above it, so no link leads out, even if somebody exchanges a folder
    /// meanwhile.
    fn open_file(&self, name: &str) -> Result<Lookup<Box<dyn Read + Send>>, Error> {
        let (folders, name) = name.rsplit_once('/').map_or((None, name), |(folders, name)| (Some(folders), name));
        let mut folder: Option<OwnedFd> = None;
        for part in folders.iter().flat_map(|folders| folders.split('/')) {
            let above = folder.as_ref().map_or(self.0.as_fd(), AsFd::as_fd);
            folder = match rustix::fs::openat(above, part, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(found) => Some(found),
                Err(Errno::NOENT) => return Ok(Lookup::Nothing),
                Err(Errno::LOOP | Errno::NOTDIR) => return Ok(Lookup::NoFile),
                Err(errno) => return Err(refused(above, part, errno)),
            };
        }
        let above = folder.as_ref().map_or(self.0.as_fd(), AsFd::as_fd);
        let found = open_at(above, name).map_err(|errno| refused(above, name, errno))?;
        Ok(found.map(|file| Box::new(file) as Box<dyn Read + Send>))
    }
}

/// Returns the reason why a name can't be opened, with the user who was refused: another user may read the message.
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
