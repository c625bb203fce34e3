//! The entries of an open folder. Each is one name below the folder's descriptor, and symbolic links are not followed.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::cannot;
use crate::{Error, FileIdentity, FileLocation, HiddenFile, Lookup, SmallFile};
use failpoint::failpoint;

/// The mode of a new file, from which the umask takes rights.
const OPEN_TO_ALL: Mode = Mode::from_raw_mode(0o666);

/// The bytes that an export leaves free on its disk. Postgres may be on the same disk, and stops when it can't write.
const FREE_MIN_BYTES: u64 = 32 << 20;

/// A name that no file has.
const NEVER_THERE: &str = ".cdc-export-never-there";

#[derive(Debug)]
pub(super) struct Dir {
    pub(super) fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    pub(super) fn open(path: &Path) -> Result<Dir, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(cannot("open", path.display()))?;
        Ok(Dir { fd, path: path.to_owned() })
    }

    /// Returns a function that converts the cause of a failed operation on an entry.
    pub(super) fn cannot<E: Into<io::Error>>(
        &self,
        verb: &'static str,
        name: &str,
    ) -> impl FnOnce(E) -> Error + use<E> {
        let path = self.path.join(name);
        move |cause| cannot(verb, path.display())(cause)
    }

    /// Puts the names of the folder's entries on disk.
    pub(super) fn sync(&self) -> Result<(), Error> {
        rustix::fs::fsync(&self.fd).map_err(cannot("sync", self.path.display()))
    }

    /// Checks that the process may create files here, and that the disk takes changes and has room. Doesn't return
    /// while the file system is frozen.
    pub(super) fn require_room(&self) -> Result<(), Error> {
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        rustix::fs::accessat(&self.fd, ".", access, AtFlags::empty())
            .map_err(cannot("write to", self.path.display()))?;
        // A frozen file system answers everything else. It writes nothing, because there is no such file.
        self.remove(NEVER_THERE)?;
        require_room(&self.fd).map_err(cannot("write to", self.path.display()))
    }

    pub(super) fn names(&self) -> Result<impl Iterator<Item = Result<Box<CStr>, Error>> + use<'_>, Error> {
        let entries = rustix::fs::Dir::read_from(&self.fd).map_err(cannot("list", self.path.display()))?;
        Ok(entries.map(|entry| match entry {
            Ok(entry) => Ok(entry.file_name().into()),
            Err(errno) => Err(cannot("list", self.path.display())(errno)),
        }))
    }

    pub(super) fn create(&self, name: &str) -> Result<File, Error> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, OPEN_TO_ALL).map_err(self.cannot("create", name))?;
        Ok(file.into())
    }

    pub(super) fn read_small(&self, name: &str, most: u64) -> Result<Option<SmallFile>, Error> {
        let file = match open_at(&self.fd, name).map_err(self.cannot("open", name))? {
            Lookup::File(_, file) => file,
            Lookup::Nothing => return Ok(None),
            Lookup::NoFile => return Ok(Some(SmallFile::default())),
        };
        let mut text = Vec::new();
        file.take(most + 1).read_to_end(&mut text).map_err(self.cannot("read", name))?;
        let text = Some(text).filter(|text| text.len() as u64 <= most);
        Ok(Some(SmallFile { text, ..SmallFile::default() }))
    }

    /// Writes a small file: puts its text on disk under a hidden name, calls `give_name` to rename it, and syncs the
    /// folder, also if something else has the name: its writer may have died before the sync.
    ///
    /// Removes the hidden name in the end, unless the process dies or the disk fails.
    ///
    /// # Errors
    /// If a step fails. The new name may not survive a crash then.
    pub(super) fn write_small(
        &self,
        draft: &str,
        text: &str,
        give_name: impl FnOnce() -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let mut file = self.create(draft)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        let named = written.map_err(self.cannot("write", draft)).and_then(|()| give_name());
        self.remove(draft)?;
        let named = named?;
        self.sync()?;
        Ok(named)
    }

    /// Renames a draft. Returns false if something has the name.
    pub(super) fn name_draft(&self, draft: &str, name: &str) -> Result<bool, Error> {
        match self.rename_without_replacing(draft, name) {
            Err(Errno::EXIST) => Ok(false),
            renamed => renamed.map(|()| true).map_err(self.cannot("rename", draft)),
        }
    }

    /// Returns the identity of the file with this name, even if the process may not read it. Returns `None` if there is
    /// no plain file.
    pub(super) fn identity(&self, name: &str) -> Result<Option<FileIdentity>, Error> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile => Ok(None),
            Ok(found) => {
                let modified_ns = found.st_mtime * 1_000_000_000 + found.st_mtime_nsec as i64;
                let location = FileLocation::Folder { inode: found.st_ino, modified_ns };
                Ok(Some(FileIdentity { bytes: found.st_size.unsigned_abs(), location }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.cannot("look up", name)(errno)),
        }
    }

    /// Returns the name of the recorded file: its hidden name, or any name that a file of the service can have.
    pub(super) fn locate(&self, recorded: &FileIdentity) -> Result<Option<String>, Error> {
        for name in self.names()? {
            let Ok(name) = name?.into_c_string().into_string() else { continue };
            let may_be_ours = HiddenFile::read(&name).is_some() || is_own_name(&name);
            if may_be_ours && self.identity(&name)?.as_ref() == Some(recorded) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Removes a file. Returns false if there was none.
    pub(super) fn remove(&self, name: &str) -> Result<bool, Error> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(false),
            removed => removed.map(|()| true).map_err(self.cannot("remove", name)),
        }
    }

    pub(super) fn rename_without_replacing(&self, from: &str, to: &str) -> Result<(), Errno> {
        match rustix::fs::renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE) {
            // The file system doesn't know the flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                rustix::fs::linkat(&self.fd, from, &self.fd, to, AtFlags::empty())?;
                rustix::fs::unlinkat(&self.fd, from, AtFlags::empty())
            }
            renamed => renamed,
        }
    }
}

/// Checks that an ordinary user can still write more than the bytes which have to stay free.
pub(super) fn require_room(place: &impl AsFd) -> io::Result<()> {
    let disk = rustix::fs::fstatvfs(place)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    failpoint!("sink.room", Err(no_room(free)));
    if free < FREE_MIN_BYTES { Err(no_room(free)) } else { Ok(()) }
}

fn no_room(free: u64) -> io::Error {
    let missing = FREE_MIN_BYTES.saturating_sub(free);
    io::Error::new(io::ErrorKind::StorageFull, format!("{missing} more bytes of its disk have to be free"))
}

/// Opens the file with this name. Doesn't follow a link, and doesn't wait for the writer of a pipe.
pub(super) fn open_at(dir: impl AsFd, name: &str) -> Result<Lookup<File>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Lookup::Nothing),
        // A link, or a socket.
        Err(Errno::LOOP | Errno::NXIO) => return Ok(Lookup::NoFile),
        Err(errno) => return Err(errno),
    };
    let found = rustix::fs::fstat(&file)?;
    let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    Ok(if is_file { Lookup::File(found.st_size.unsigned_abs(), file.into()) } else { Lookup::NoFile })
}

/// Returns true if an export file can have this name: one visible name of printable ASCII that a header can hold in
/// quotes.
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
