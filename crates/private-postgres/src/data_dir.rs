//! The data folder of the private server: its selection, the names of its entries, and the lock of its supervisor.
//!
//! This module must not know Postgres's own files.

use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::account::Account;
use crate::ancestors::require_guarded;
use crate::files::HeldFolder;
use crate::{Error, Settings};

/// The folder that root uses if the user that runs Postgres can't enter the default one.
pub(super) const SYSTEM_DATA_DIR: &str = "/var/lib/cdc-export";

/// The prefix of the names of scratch folders. The next start removes scratch folders left behind by a crash.
pub(super) const SCRATCH: &str = "postgres.new-";

/// The time that a supervisor waits for the lock. `join` holds the lock for a moment to test it. A child process also
/// holds it until it executes its program.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A data folder that the account can enter. It may not exist yet.
#[derive(Debug)]
pub(super) struct DataDir {
    pub(super) path: PathBuf,
    pub(super) account: Account,
}

impl DataDir {
    /// Returns the folder of the settings, or [`SYSTEM_DATA_DIR`] if the default folder can't be used. Creates nothing.
    pub(super) fn find(settings: &Settings) -> Result<DataDir, Error> {
        let path = std::path::absolute(&settings.data_dir).map_err(Error::file("find", &settings.data_dir))?;
        match DataDir::at(path) {
            Err(Error::Unreachable { .. }) if settings.data_dir_is_default && nix::unistd::geteuid().is_root() => {
                DataDir::at(PathBuf::from(SYSTEM_DATA_DIR))
            }
            // An existing data folder is never replaced by an empty one elsewhere.
            Err(Error::Unguarded { data_dir, .. }) if settings.data_dir_is_default && !data_dir.exists() => {
                DataDir::at(PathBuf::from(SYSTEM_DATA_DIR))
            }
            found => found,
        }
    }

    fn at(path: PathBuf) -> Result<DataDir, Error> {
        require_guarded(&path)?;
        let account = Account::for_folders(&path.join("postgres"), &path)?;
        let data_dir = DataDir { path, account };
        let existing = data_dir.path.ancestors().find(|folder| folder.exists());
        data_dir.require_reach(existing.unwrap_or(Path::new("/")))?;
        Ok(data_dir)
    }

    /// Returns the path of the cluster.
    pub(super) fn cluster(&self) -> PathBuf {
        self.path.join("postgres")
    }

    /// Opens the folder of the cluster.
    pub(super) fn held_cluster(&self) -> Result<HeldFolder, Error> {
        let data = self.cluster();
        HeldFolder::open(&data, &self.account).map_err(Error::file("use", &data))
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("postgres.log")
    }

    pub(super) fn password(&self) -> PathBuf {
        self.path.join("postgres.password")
    }

    fn lock(&self) -> PathBuf {
        self.path.join("supervisor.lock")
    }

    /// Returns true if a process holds the supervisor's lock.
    pub(super) fn is_supervised(&self) -> Result<bool, Error> {
        let path = self.lock();
        let file = match self.account.open_for_reading(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file.map_err(Error::file("open", &path))?,
        };
        // The lock is shared, so that two processes that only test it do not conflict.
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(Error::file("lock", &path)(source)),
        }
    }

    fn require_reach(&self, folder: &Path) -> Result<(), Error> {
        if self.account.reaches(folder)? {
            return Ok(());
        }
        Err(Error::Unreachable { folder: self.path.clone(), user: self.account.name() })
    }

    /// Creates the parents of the data folder. If root runs Postgres as another user, makes them passable for that user
    /// regardless of the umask.
    fn make_parents(&self, folder: &Path) -> io::Result<()> {
        if folder.exists() {
            return Ok(());
        }
        if let Some(above) = folder.parent() {
            self.make_parents(above)?;
        }
        match fs::create_dir(folder) {
            // Another process that starts at the same time has created it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => return Ok(()),
            made => made?,
        }
        let Account::Other { .. } = self.account else { return Ok(()) };
        let mode = fs::symlink_metadata(folder)?.permissions().mode();
        fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o011))
    }

    fn make(&self) -> Result<(), Error> {
        if !self.path.exists() {
            if let Some(parent) = self.path.parent() {
                self.make_parents(parent).map_err(Error::file("make", parent))?;
            }
            // The folder is created under another name, and renamed when it belongs to the account. Otherwise another
            // process could find a folder that the account's user can't enter, and fail or use another one.
            let new = self.path.with_added_extension(format!("new-{}", uuid::Uuid::new_v4().simple()));
            self.account.make_folder(&new).map_err(Error::file("make", &new))?;
            if let Err(error) = fs::rename(&new, &self.path) {
                fs::remove_dir(&new).map_err(Error::file("remove", &new))?;
                // Another process may have created and used the folder. The lock decides which process supervises it.
                if !self.path.is_dir() {
                    return Err(Error::file("make", &self.path)(error));
                }
            }
        }
        // A strict umask may have made the new parents impassable.
        self.require_reach(&self.path)
    }
}

/// A data folder with the supervisor's lock, which this process holds until the value is dropped.
#[derive(Debug)]
pub(super) struct LockedDataDir {
    data_dir: DataDir,
    _lock: File,
}

impl LockedDataDir {
    /// Creates the folder if there is none, and locks it.
    pub(super) fn open(data_dir: DataDir) -> Result<LockedDataDir, Error> {
        data_dir.make()?;
        let path = data_dir.lock();
        let lock = data_dir.account.open_file(&path).map_err(Error::file("open", &path))?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(LockedDataDir { data_dir, _lock: lock }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => return Err(Error::AlreadySupervised(data_dir.path)),
                Err(TryLockError::Error(source)) => {
                    return Err(Error::file("lock", &path)(source));
                }
            }
        }
    }
}

impl LockedDataDir {
    /// Creates a scratch folder that belongs to the account. The caller fills it and renames it.
    pub(super) fn make_scratch(&self) -> Result<PathBuf, Error> {
        let scratch = self.path.join(format!("{SCRATCH}{}", uuid::Uuid::new_v4().simple()));
        self.account.make_folder(&scratch).map_err(Error::file("make", &scratch))?;
        Ok(scratch)
    }

    /// Makes the entries of the folder durable.
    pub(super) fn sync(&self) -> Result<(), Error> {
        File::open(&self.path).and_then(|folder| folder.sync_all()).map_err(Error::file("sync", &self.path))
    }
}

impl Deref for LockedDataDir {
    type Target = DataDir;

    fn deref(&self) -> &DataDir {
        &self.data_dir
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(data_dir: PathBuf) -> Settings {
        Settings {
            data_dir,
            data_dir_is_default: true,
            bin_dir: None,
            ignores_installed: false,
            download: None,
            fetch: |_, _| Err(String::new()),
            search_path: Vec::new(),
            runtime_dir: None,
        }
    }

    #[test]
    fn default_folder_that_the_account_cannot_enter_is_replaced() {
        let closed = tempfile::tempdir().unwrap();
        fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let folder = closed.path().join("data");
        let data_dir = DataDir::find(&settings(folder.clone())).unwrap();
        // A user other than root can enter the folder, so it is not replaced.
        let expected = if nix::unistd::geteuid().is_root() { PathBuf::from(SYSTEM_DATA_DIR) } else { folder };
        assert_eq!(data_dir.path, expected);
    }

    #[test]
    fn default_folder_that_the_account_can_enter_is_used() {
        let open = tempfile::tempdir().unwrap();
        fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let folder = open.path().join("data");
        let data_dir = DataDir::find(&settings(folder.clone())).unwrap();
        assert_eq!(data_dir.path, folder);
    }
}
