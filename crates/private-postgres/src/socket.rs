//! The folder of the server's Unix socket: closed to other users, and with a path that is short enough for a socket, as
//! that of the data folder need not be.

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

/// Used where the preferred folder can't be. Not the folder of TMPDIR: on macOS that path alone has half the length.
const FALLBACK: &str = "/tmp";

/// The socket's name, by the port 5432, and that of its lock file.
const NAME: &str = ".s.PGSQL.5432";
const LOCK: &str = ".s.PGSQL.5432.lock";

/// A folder with the socket alone in it; removed when dropped.
#[derive(Debug)]
pub(super) struct SocketFolder {
    pub(super) path: PathBuf,
    account: Account,
}

impl SocketFolder {
    /// Makes the folder in `preferred`, else in `/tmp`. Its name is derived from the data folder's path, so that a
    /// start after a crash reuses it; where another user has taken the name, a random one is used.
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
                    tracing::debug!(event = "socket_folder_refused", folder = %path.display(), error = %error, "can't keep the socket here");
                }
            }
        }
        Err(Error::NoSocketFolder(fallback.to_owned()))
    }

    /// The folder in the syntax of `unix_socket_directories`, where a comma would begin another one.
    pub(super) fn quoted(&self) -> String {
        format!("\"{}\"", self.path.display().to_string().replace('"', "\"\""))
    }

    /// Removes the socket and its lock file that a killed server left. The caller must know that no server runs.
    /// Postgres itself refuses to replace a lock file whose process id another process has got meanwhile.
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
        // Best effort; the next start reuses the folder.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Makes the folder, or takes over one of the account's; `false` where it is another user's, or the account's user
/// can't enter it.
fn make_private(path: &Path, data_dir: &LockedDataDir) -> Result<bool, Error> {
    let account = &data_dir.account;
    // Root's own runtime folder is closed to the account's user; no folder must be left there.
    if let Some(parent) = path.parent()
        && !account.reaches(parent)?
    {
        return Ok(false);
    }
    match account.make_folder(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(Error::file("make", path))?,
    }
    // Not `metadata`: in /tmp another user may have made a link to a folder of ours.
    let found = fs::symlink_metadata(path).map_err(Error::file("read", path))?;
    let private = found.is_dir() && found.uid() == account.uid() && found.mode() & 0o777 == 0o700;
    Ok(private && account.reaches(path)?)
}

/// The socket folder's name: the same for the same data folder, and most probably another for another one.
fn name_for(data_dir: &Path) -> String {
    let data_dir = data_dir.canonicalize().unwrap_or(data_dir.to_owned());
    let digest = ring::digest::digest(&ring::digest::SHA256, data_dir.as_os_str().as_encoded_bytes());
    let id = digest.as_ref()[..8].iter().fold(0_u64, |id, byte| id << 8 | u64::from(*byte));
    format!("cdc-export-{id:016x}")
}

/// Whether a socket's path in this folder is short enough, and UTF-8, which the client needs.
fn fits(folder: &Path) -> bool {
    folder.to_str().is_some() && path(folder).as_os_str().len() <= LONGEST_PATH
}

/// The socket in its folder.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join(NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_fits_up_to_the_longest_socket_path() {
        let room = LONGEST_PATH - "/.s.PGSQL.5432".len();
        let longest = format!("/{}", "x".repeat(room - 1));
        assert!(fits(Path::new(&longest)));
        assert!(!fits(Path::new(&format!("{longest}x"))));
    }

    #[test]
    fn a_comma_in_the_folder_stays_one_folder() {
        let folder = SocketFolder { path: PathBuf::from("/run/a,b\"c"), account: Account::Own };
        assert_eq!(folder.quoted(), "\"/run/a,b\"\"c\"");
    }
}
