//! The certificate authorities that the connection to the database trusts.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The variables that name the platform's authorities instead of their usual places: a file, and folders.
const FILE: &str = "SSL_CERT_FILE";
const FOLDERS: &str = "SSL_CERT_DIR";

/// Makes this process trust the authorities in `file` alone. Returns at once if it does; otherwise the process restarts
/// itself.
///
/// sqlx trusts the platform's authorities beside those of `sslrootcert`. With `verify-ca`, which checks no name, a
/// certificate that any public authority gave to anybody would do. The environment says where the platform's
/// authorities are. A process can't safely change its environment once it runs, so it executes its own program with
/// another one: same arguments, same process id.
///
/// # Errors
/// If the process can't be restarted.
pub fn trust_alone(file: &Path) -> io::Result<()> {
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
    #[expect(clippy::disallowed_methods, reason = "in config: what the libraries will read, whatever .env says")]
    std::env::var_os(OsStr::new(name))
}
