//! The data folder of the private server: its selection, the names of its entries, and the lock of its supervisor.
//!
//! If root runs Postgres as another user, the folder and all its entries but the cluster and the downloaded programs
//! belong to root. This module must not know Postgres's own files.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::account::Account;
use crate::{DEFAULT_DATA_DIR, Error, SYSTEM_DATA_DIR, Settings};

/// The prefix of the names of scratch folders. The next start removes scratch folders left behind by a crash.
const SCRATCH: &str = "postgres.new-";

/// The time that a supervisor waits for the lock. A child process of its last holder also holds the lock until it
/// executes its program.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A data folder that the account can enter. It may not exist yet.
#[derive(Debug)]
pub(super) struct DataDir {
    /// The path as the settings name it.
    pub(super) named: PathBuf,
    pub(super) path: PathBuf,
    pub(super) account: Account,
}

impl DataDir {
    /// Returns the folder of the settings, or for root [`SYSTEM_DATA_DIR`] if the default can't serve. Creates nothing.
    pub(super) fn find(settings: &Settings) -> Result<DataDir, Error> {
        if let Some(chosen) = &settings.data_dir {
            return DataDir::at(chosen);
        }
        let default = Path::new(DEFAULT_DATA_DIR);
        match DataDir::at(default) {
            Err(Error::Unreachable { .. }) if geteuid().is_root() => DataDir::at(Path::new(SYSTEM_DATA_DIR)),
            // An existing data folder is never replaced by an empty one elsewhere.
            Err(Error::Unguarded { .. }) if !default.exists() => DataDir::at(Path::new(SYSTEM_DATA_DIR)),
            found => found,
        }
    }

    fn at(named: &Path) -> Result<DataDir, Error> {
        let path = std::path::absolute(named).map_err(Error::file("find", named))?;
        if geteuid().is_root()
            && let Some((part, why)) = weak_part(&path).map_err(Error::file("check the path", &path))?
        {
            return Err(Error::Unguarded { part, why });
        }
        let account = Account::for_cluster(&path.join("postgres"))?;
        let data_dir = DataDir { named: named.to_owned(), path, account };
        let existing = data_dir.path.ancestors().find(|folder| folder.exists());
        if !data_dir.account.reaches(existing.unwrap_or(Path::new("/"))) {
            return Err(Error::Unreachable { folder: data_dir.path, user: data_dir.account.name() });
        }
        Ok(data_dir)
    }

    pub(super) fn cluster(&self) -> PathBuf {
        self.path.join("postgres")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("postgres.log")
    }

    /// Creates the folder and its parents. If root runs Postgres as another user, that user can pass through the new
    /// folders regardless of the umask.
    fn make(&self) -> io::Result<()> {
        let missing: Vec<&Path> = self.path.ancestors().take_while(|folder| !folder.exists()).collect();
        fs::create_dir_all(&self.path)?;
        for folder in missing {
            let mode = match self.account {
                Account::Other { .. } => 0o755,
                Account::Own if folder == self.path => 0o700,
                Account::Own => continue,
            };
            fs::set_permissions(folder, Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    /// Creates the folder if there is none, and locks it until the returned file is closed. Removes the scratch folders
    /// of crashed attempts.
    pub(super) async fn lock(&self) -> Result<File, Error> {
        self.make().map_err(Error::file("make", &self.path))?;
        let path = self.path.join("supervisor.lock");
        let file = open_private(&path).map_err(Error::file("open", &path))?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(TryLockError::WouldBlock) => return Err(Error::AlreadySupervised(self.path.clone())),
                Err(TryLockError::Error(source)) => return Err(Error::file("lock", &path)(source)),
            }
        }
        let entries = fs::read_dir(&self.path).map_err(Error::file("list", &self.path))?;
        let scratch = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(SCRATCH));
        for folder in scratch.map(|entry| entry.path()) {
            fs::remove_dir_all(&folder).map_err(Error::file("remove", &folder))?;
        }
        Ok(file)
    }

    /// Creates a scratch folder that belongs to the account. It is removed when the value is dropped.
    pub(super) fn make_scratch(&self) -> Result<TempDir, Error> {
        let make = || {
            let scratch = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(&self.path)?;
            self.account.take(scratch.path())?;
            Ok(scratch)
        };
        make().map_err(Error::file("make a folder in", &self.path))
    }

    /// Gives a filled scratch folder its final name. After a crash, the folder has that name with all its contents, or
    /// has not.
    pub(super) fn place(&self, scratch: &TempDir, name: &Path) -> Result<(), Error> {
        rustix::fs::sync();
        fs::rename(scratch.path(), name)
            .and_then(|()| File::open(&self.path)?.sync_all())
            .map_err(Error::file("make", name))
    }
}

/// Returns the part of an absolute path that a user other than root can replace, and the reason.
///
/// Root writes into the data folder, and runs Postgres as the owner of the cluster in it.
fn weak_part(path: &Path) -> io::Result<Option<(PathBuf, &'static str)>> {
    let mut entry_is_roots = false;
    for part in path.ancestors() {
        let found = match fs::symlink_metadata(part) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found?,
        };
        // The group of root counts as root.
        let is_writable = found.mode() & 0o002 != 0 || (found.mode() & 0o020 != 0 && found.gid() != 0);
        // In a sticky folder, other users can't replace an entry that belongs to root.
        let is_sticky = found.mode() & 0o1000 != 0;
        if found.uid() != 0 {
            return Ok(Some((part.to_owned(), "belongs to another user than root")));
        }
        if found.is_symlink() {
            // Following it once returns an error if the links are a loop.
            fs::metadata(part)?;
            let target = part.with_file_name(fs::read_link(part)?);
            if let Some(weak) = weak_part(&target)? {
                return Ok(Some(weak));
            }
        } else if is_writable && !(is_sticky && entry_is_roots) {
            return Ok(Some((part.to_owned(), "is writable by others, who could replace its entries")));
        }
        entry_is_roots = true;
    }
    Ok(None)
}

/// Opens a file for reading and appending, and creates it if there is none. Only this process's user may read it.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    File::options().read(true).append(true).create(true).mode(0o600).open(path)
}
