//! Restricts the certificate authorities that connections to Postgres trust.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variables that replace the usual places of the platform's authorities: a file, and folders.
const FILE: &str = "SSL_CERT_FILE";
const FOLDERS: &str = "SSL_CERT_DIR";
/// The variables by which a process passes the places of the authorities to itself when it restarts.
const OTHERS_FILE: &str = "_CDC_EXPORT_OTHERS_CERT_FILE";
const OTHERS_FOLDERS: &str = "_CDC_EXPORT_OTHERS_CERT_DIR";

/// The places of the certificate authorities that connections other than those to Postgres trust.
pub struct OtherAuthorities {
    /// A file of certificates.
    pub file: Option<PathBuf>,
    /// Folders of such files.
    pub folders: Vec<PathBuf>,
}

/// Makes the connections to Postgres trust only the authorities in `file`. Returns at once if they do already.
/// Otherwise restarts the process.
///
/// Returns the places of the authorities that the other connections trusted before, which the caller has to hand to
/// [`crate::tls`]. Returns `None` if these trust the right ones by themselves.
///
/// sqlx also trusts the platform's authorities, in addition to those of `sslrootcert`. With `verify-ca`, which checks
/// no host name, any certificate of a public authority would be accepted.
///
/// Environment variables set the place of the platform's authorities. A running process can't safely change its
/// environment. So it executes its own program again, with the same arguments and process id, and with another
/// environment.
///
/// # Errors
/// If the process can't be restarted.
pub fn trust_only(file: &Path) -> io::Result<Option<OtherAuthorities>> {
    if variable(FILE).is_some_and(|own| own == file.as_os_str()) && variable(FOLDERS).is_none() {
        return Ok(variable(OTHERS_FOLDERS).map(|folders| {
            let folders = std::env::split_paths(&folders).filter(|folder| !folder.as_os_str().is_empty());
            OtherAuthorities { file: variable(OTHERS_FILE).map(PathBuf::from), folders: folders.collect() }
        }));
    }
    let mut arguments = std::env::args_os();
    let mut again = Command::new(std::env::current_exe()?);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    again.args(arguments).env(FILE, file).env_remove(FOLDERS).env_remove(OTHERS_FILE).env_remove(OTHERS_FOLDERS);
    if let Some((file, folders)) = places_of_others() {
        again.env(OTHERS_FOLDERS, folders).envs(file.map(|file| (OTHERS_FILE, file)));
    }
    Err(again.exec())
}

/// Returns the places of the authorities that the environment or the platform names: a file, and folders as in `PATH`.
/// Returns `None` on macOS, where the other connections ask the system, and the variables count only for sqlx.
fn places_of_others() -> Option<(Option<OsString>, OsString)> {
    if cfg!(target_vendor = "apple") {
        return None;
    }
    let (file, folders) = (variable(FILE), variable(FOLDERS));
    if file.is_some() || folders.is_some() {
        return Some((file, folders.unwrap_or_default()));
    }
    let found = openssl_probe::probe();
    Some((found.cert_file.map(Into::into), std::env::join_paths(found.cert_dir).unwrap_or_default()))
}

fn variable(name: &str) -> Option<OsString> {
    #[expect(clippy::disallowed_methods, reason = "in config: the libraries read the environment itself, not .env")]
    std::env::var_os(OsStr::new(name))
}
