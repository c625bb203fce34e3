//! The folder of the server's Unix socket. Only the account may enter it, so the server asks for no password. Its path
//! is short enough for a socket. The path of the data folder may be too long.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::{fs, io};

use ring::digest::{SHA256, digest};

use crate::account::Account;
use crate::data_dir::DataDir;
use crate::{Error, PORT};

/// The longest path of a socket in bytes, without the final NUL.
const LONGEST_PATH: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

/// The parent folder that is used if the preferred one can't be. TMPDIR is not used, because on macOS its path has half
/// of the allowed length.
const FALLBACK: &str = "/tmp";

/// Creates the folder of the socket in `preferred`, else in `/tmp`.
///
/// The name is derived from the data folder's path, so that a start after a crash reuses the folder. If the name
/// belongs to another user, a random name is used.
pub(super) fn make_folder(preferred: Option<&Path>, data_dir: &DataDir) -> Result<PathBuf, Error> {
    let name = name_for(&data_dir.path);
    let random = format!("cdc-export-{}", uuid::Uuid::new_v4().simple());
    let candidates = preferred.map(|preferred| preferred.join(&name));
    let fallback = [name, random].map(|name| Path::new(FALLBACK).join(name));
    let mut candidates = candidates.into_iter().chain(fallback).filter(|path| fits(path));
    let private = candidates.find(|path| matches!(make_private(path, &data_dir.account), Ok(true)));
    private.ok_or(Error::NoSocketFolder)
}

/// Returns a folder in the syntax of `unix_socket_directories`, in which an unquoted comma separates folders.
pub(super) fn quoted(folder: &Path) -> String {
    format!("\"{}\"", folder.display().to_string().replace('"', "\"\""))
}

/// Removes the socket and the lock file of a killed server. The caller must ensure that no server runs.
///
/// Postgres does not replace a lock file if its process id meanwhile belongs to another process.
pub(super) fn clear(folder: &Path) {
    let socket = socket_in(folder);
    // Missing files are the usual case, and Postgres reports any other obstacle.
    let _ = fs::remove_file(&socket);
    let _ = fs::remove_file(socket.with_added_extension("lock"));
}

pub(super) fn answers(folder: &Path) -> bool {
    UnixStream::connect(socket_in(folder)).is_ok()
}

/// Creates the folder, or reuses one that belongs to the account. Returns false if the folder belongs to another user,
/// or if the account's user can't enter it.
fn make_private(path: &Path, account: &Account) -> Result<bool, Error> {
    // The account's user can't enter root's runtime folder. No folder must be created there.
    if let Some(parent) = path.parent()
        && !account.reaches(parent)
    {
        return Ok(false);
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.and_then(|()| account.take(path)).map_err(Error::file("make", path))?,
    }
    // A link is not followed, because in /tmp another user may have created a link to a folder of the account.
    let found = fs::symlink_metadata(path).map_err(Error::file("read", path))?;
    let is_private = found.is_dir() && found.uid() == account.uid() && found.mode() & 0o777 == 0o700;
    Ok(is_private && account.reaches(path))
}

fn name_for(data_dir: &Path) -> String {
    let data_dir = data_dir.canonicalize().unwrap_or(data_dir.to_owned());
    let digest = digest(&SHA256, data_dir.as_os_str().as_encoded_bytes());
    format!("cdc-export-{}", hex::encode(&digest.as_ref()[..8]))
}

/// Returns true if the path of a socket in this folder is short enough. It must also be UTF-8, which the client library
/// requires.
fn fits(folder: &Path) -> bool {
    folder.to_str().is_some() && socket_in(folder).as_os_str().len() <= LONGEST_PATH
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join(format!(".s.PGSQL.{PORT}"))
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
        assert_eq!(quoted(Path::new("/run/a,b\"c")), "\"/run/a,b\"\"c\"");
    }
}
