//! Accesses files that the account's user may have tampered with.
//!
//! The account's user can create a link, a pipe or a hard link to another user's file under any name. If this process
//! is root, it must not read, write or remove a file on behalf of that user that the user can't access.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;
use std::process::Stdio;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::account::Account;

/// An open folder that belongs to the account. It stays the same folder even if another one gets its name.
#[derive(Debug)]
pub(super) struct HeldFolder {
    dir: OwnedFd,
    uid: u32,
}

impl HeldFolder {
    /// Opens a folder. If root runs Postgres as another user, the folder must belong to that user and must not be a
    /// link.
    pub(super) fn open(path: &Path, account: &Account) -> io::Result<HeldFolder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let uid = account.uid();
        // Without root, a link is safe, because it grants no additional access. It may lead to a larger disk.
        if let Account::Own = account {
            return Ok(HeldFolder { dir: rustix::fs::open(path, flags, Mode::empty())?, uid });
        }
        let dir = match rustix::fs::open(path, flags | OFlags::NOFOLLOW, Mode::empty()) {
            // Linux returns NOTDIR for a link.
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(io::Error::other("it is a link or not a folder")),
            opened => opened?,
        };
        require_owner(rustix::fs::fstat(&dir)?.st_uid, uid)?;
        Ok(HeldFolder { dir, uid })
    }

    /// Reads a small text file in the folder. The file must belong to the account.
    pub(super) fn read(&self, name: &str, max_bytes: u64) -> io::Result<String> {
        read(open(&self.dir, Path::new(name), OFlags::RDONLY, self.uid)?, max_bytes)
    }

    /// Removes a file in the folder. Succeeds if there is none.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Moves the only entry of this folder to another path on the same disk. The entry must be a folder that belongs to
    /// the account.
    pub(super) fn move_only_folder(&self, to: &Path) -> io::Result<()> {
        let not_one = || io::Error::other("it must contain exactly one folder");
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        let [name] = &names[..] else { return Err(not_one()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(&self.dir, name, flags, Mode::empty()).map_err(|_| not_one())?;
        require_owner(rustix::fs::fstat(&folder)?.st_uid, self.uid)?;
        Ok(rustix::fs::renameat(&self.dir, name, CWD, to)?)
    }

    /// Returns true if `path` leads to this folder.
    #[cfg(target_os = "linux")]
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let same = || -> io::Result<bool> {
            let (held, found) = (rustix::fs::fstat(&self.dir)?, std::fs::metadata(path)?);
            Ok((held.st_dev, held.st_ino) == (found.dev(), found.ino()))
        };
        same().unwrap_or(false)
    }
}

impl Account {
    /// Creates a folder that only the account may enter.
    pub(super) fn make_folder(&self, path: &Path) -> io::Result<()> {
        rustix::fs::mkdir(path, Mode::RWXU)?;
        let Account::Other { uid, gid, .. } = self else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        // If the account's user can rename entries here, the new folder may have been replaced by another one of
        // root's. A folder with entries, or with access for others, must not be given to that user.
        let found = rustix::fs::fstat(&dir)?;
        let mut entries = rustix::fs::Dir::read_from(&dir)?.filter_map(Result::ok);
        let is_empty = entries.all(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."));
        // The folder may have inherited a setgid bit.
        let is_closed = found.st_mode & 0o5777 == 0o700;
        if found.st_uid != nix::unistd::geteuid().as_raw() || !is_closed || !is_empty {
            return Err(io::Error::other("another process replaced the new folder"));
        }
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid.as_raw()), rustix::fs::Gid::from_raw(gid.as_raw()));
        let given = rustix::fs::fchmod(&dir, Mode::RWXU).and_then(|()| rustix::fs::fchown(&dir, Some(uid), Some(gid)));
        if given.is_err() {
            // The unusable folder would make the next start fail.
            let _ = std::fs::remove_dir(path);
        }
        Ok(given?)
    }

    /// Removes a folder with its contents.
    ///
    /// If root runs Postgres as another user, that user removes the contents, and root removes the empty folder. Root
    /// must not remove the contents, because they may include files of other users.
    pub(super) fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let Account::Other { .. } = self else { return std::fs::remove_dir_all(path) };
        let above = path.parent().unwrap_or(Path::new("/"));
        let mut rm = self.command(Path::new("rm"), above);
        // If an entry can't be removed, the removal of the folder fails below.
        rm.args(["-rf", "--"]).arg(path).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        match std::fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Creates a file that only the account may read.
    pub(super) fn create_file(&self, path: &Path) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
        if let Account::Other { uid, gid, .. } = self {
            fchown(&file, Some(uid.as_raw()), Some(gid.as_raw()))?;
        }
        Ok(file)
    }

    /// Opens a file for appending, and creates it if there is none. Only the account may read it.
    pub(super) fn open_file(&self, path: &Path) -> io::Result<File> {
        match self.create_file(path) {
            Err(exists) if exists.kind() == io::ErrorKind::AlreadyExists => {
                self.adopt(path)?;
                require_one_name(open(CWD, path, OFlags::RDWR | OFlags::APPEND, self.uid())?)
            }
            made => made,
        }
    }

    /// Changes the owner of an empty file of root's to the account. A crash between the creation of a file and the
    /// change of its owner leaves such a file.
    fn adopt(&self, path: &Path) -> io::Result<()> {
        let Account::Other { uid, gid, .. } = self else { return Ok(()) };
        // The caller opens the file next, and refuses every other file.
        let Ok(file) = open(CWD, path, OFlags::RDONLY, nix::unistd::geteuid().as_raw()) else { return Ok(()) };
        let found = file.metadata()?;
        if found.nlink() == 1 && found.len() == 0 {
            rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR)?;
            fchown(&file, Some(uid.as_raw()), Some(gid.as_raw()))?;
        }
        Ok(())
    }

    /// Opens a file for reading. It must belong to the account and must not have a second name, because the account's
    /// user could have created a hard link to a file that this user may not read.
    pub(super) fn open_for_reading(&self, path: &Path) -> io::Result<File> {
        require_one_name(open(CWD, path, OFlags::RDONLY, self.uid())?)
    }

    /// Reads a small text file that belongs to the account and has only one name.
    pub(super) fn read_file(&self, path: &Path, max_bytes: u64) -> io::Result<String> {
        read(self.open_for_reading(path)?, max_bytes)
    }
}

/// Opens a regular file that belongs to this user and is not a link. The flag NONBLOCK prevents that the opening of a
/// pipe hangs.
fn open(dir: impl AsFd, path: &Path, access: OFlags, uid: u32) -> io::Result<File> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, path, flags, Mode::empty()) {
        Err(Errno::LOOP) => return Err(io::Error::other("it is a link")),
        opened => File::from(opened?),
    };
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    require_owner(found.uid(), uid)?;
    Ok(file)
}

fn require_owner(found: u32, uid: u32) -> io::Result<()> {
    if found == uid {
        Ok(())
    } else {
        Err(io::Error::other(format!("it belongs to user {found}, not {uid}: remove it, or give it to that user")))
    }
}

fn require_one_name(file: File) -> io::Result<File> {
    if file.metadata()?.nlink() == 1 { Ok(file) } else { Err(io::Error::other("it has more than one name")) }
}

fn read(file: File, max_bytes: u64) -> io::Result<String> {
    let mut text = String::new();
    file.take(max_bytes + 1).read_to_string(&mut text)?;
    if text.len() as u64 > max_bytes {
        return Err(io::Error::other(format!("it has more than {max_bytes} bytes")));
    }
    Ok(text)
}
