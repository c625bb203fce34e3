//! Restricts the certificate authorities that the process trusts.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The variables that replace the usual places of the platform's authorities: a file, and folders.
const FILE: &str = "SSL_CERT_FILE";
const FOLDERS: &str = "SSL_CERT_DIR";

/// Makes this process trust only the authorities in `file`. Returns at once if it does already. Otherwise restarts the
/// process.
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
pub fn trust_only(file: &Path) -> io::Result<()> {
    if variable(FILE).is_some_and(|own| own == file.as_os_str()) && variable(FOLDERS).is_none() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let mut again = Command::new(std::env::current_exe()?);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    Err(again.args(arguments).env(FILE, file).env_remove(FOLDERS).exec())
}

fn variable(name: &str) -> Option<std::ffi::OsString> {
    #[expect(clippy::disallowed_methods, reason = "in config: the libraries read the environment itself, not .env")]
    std::env::var_os(OsStr::new(name))
}
