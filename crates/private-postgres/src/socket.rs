//! The folder of the server's Unix socket. It is closed to other users, and its path is short enough for a socket. The
//! path of the data folder may be too long.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::account::Account;
use crate::data_dir::LockedDataDir;
use crate::files::HeldFolder;

/// The longest path of a socket in bytes, without the final NUL.
const LONGEST_PATH: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

/// The parent folder that is used if the preferred one can't be. TMPDIR is not used, because on macOS its path has half
/// of the allowed length.
const FALLBACK: &str = "/tmp";

/// The socket's name, which contains the port 5432.
const NAME: &str = ".s.PGSQL.5432";
/// The name of the socket's lock file.
const LOCK: &str = ".s.PGSQL.5432.lock";

/// A folder for the socket only. Dropping this value removes the folder.
#[derive(Debug)]
pub(super) struct SocketFolder {
    pub(super) path: PathBuf,
    account: Account,
}

impl SocketFolder {
    /// Creates the folder in `preferred`, else in `/tmp`.
    ///
    /// The name is derived from the data folder's path, so that a start after a crash reuses the folder. If the name
    /// belongs to another user, a random name is used.
    pub(super) fn make(preferred: Option<&Path>, data_dir: &LockedDataDir) -> Result<SocketFolder, Error> {
        let name = name_for(&data_dir.path);
        let fallback = Path::new(FALLBACK);
        let random = format!("cdc-export-{}", uuid::Uuid::new_v4().simple());
        let candidates = preferred.map(|preferred| preferred.join(&name));
        let candidates = candidates.into_iter().chain([fallback.join(&name), fallback.join(random)]);
        for path in candidates.filter(|path| fits(path)) {
            match make_private(&path, data_dir) {
                Ok(true) => return Ok(SocketFolder { path, account: data_dir.account.clone() }),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(event = "socket_folder_refused", folder = %path.display(), error = %error, "can't use a folder for the socket");
                }
            }
        }
        Err(Error::NoSocketFolder(fallback.to_owned()))
    }

    /// Returns the folder in the syntax of `unix_socket_directories`, in which an unquoted comma separates folders.
    pub(super) fn quoted(&self) -> String {
        format!("\"{}\"", self.path.display().to_string().replace('"', "\"\""))
    }

    /// Removes the socket and the lock file of a killed server. The caller must ensure that no server runs.
    ///
    /// Postgres does not replace a lock file if its process id meanwhile belongs to another process.
    pub(super) fn clear(&self) {
        let folder = match HeldFolder::open(&self.path, &self.account) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            opened => opened,
        };
        let removed = folder.and_then(|folder| folder.remove(NAME).and(folder.remove(LOCK)));
        if let Err(error) = removed {
            tracing::warn!(event = "socket_left", folder = %self.path.display(), error = %error, "can't remove a stale socket");
        }
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        self.clear();
        // An error is ignored, because the next start reuses the folder.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Creates the folder, or reuses one that belongs to the account. Returns false if the folder belongs to another user,
/// or if the account's user can't enter it.
fn make_private(path: &Path, data_dir: &LockedDataDir) -> Result<bool, Error> {
    let account = &data_dir.account;
    // The account's user can't enter root's runtime folder. No folder must be created there.
    if let Some(parent) = path.parent()
        && !account.reaches(parent)?
    {
        return Ok(false);
    }
    match account.make_folder(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(Error::file("make", path))?,
    }
    // A link is not followed, because in /tmp another user may have created a link to a folder of the account.
    let found = fs::symlink_metadata(path).map_err(Error::file("read", path))?;
    let private = found.is_dir() && found.uid() == account.uid() && found.mode() & 0o777 == 0o700;
    Ok(private && account.reaches(path)?)
}

/// Returns the name of the socket folder, derived from a hash of the data folder's path.
fn name_for(data_dir: &Path) -> String {
    let data_dir = data_dir.canonicalize().unwrap_or(data_dir.to_owned());
    let digest = ring::digest::digest(&ring::digest::SHA256, data_dir.as_os_str().as_encoded_bytes());
    let id = digest.as_ref()[..8].iter().fold(0_u64, |id, byte| id << 8 | u64::from(*byte));
    format!("cdc-export-{id:016x}")
}

/// Returns true if the path of a socket in this folder is short enough. It must also be UTF-8, which the client library
/// requires.
fn fits(folder: &Path) -> bool {
    folder.to_str().is_some() && path(folder).as_os_str().len() <= LONGEST_PATH
}

/// Returns the path of the socket in a folder.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join(NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_fits_up_to_the_longest_socket_path() {
        let room = LONGEST_PATH - "/.s.PGSQL.5432".len();
        let longest = format!("/{}", "x".repeat(room - 1));
        assert!(fits(Path::new(&longest)));
        assert!(!fits(Path::new(&format!("{longest}x"))));
    }

    #[test]
    fn folder_with_a_comma_is_quoted() {
        let folder = SocketFolder { path: PathBuf::from("/run/a,b\"c"), account: Account::Own };
        assert_eq!(folder.quoted(), "\"/run/a,b\"\"c\"");
    }
}
