//! Who alone may vouch for the database's server.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Where the platform's authorities are read from instead of their usual places: a file, and folders.
const FILE: &str = "SSL_CERT_FILE";
const FOLDERS: &str = "SSL_CERT_DIR";

/// Makes the authorities in `file` the only ones of this process, which begins anew for that; at once if they are.
///
/// sqlx asks the platform's beside those of `sslrootcert`. With `verify-ca`, which looks at no name, anybody's certificate of any
/// public authority would do. Where the platform's are is read from the environment, which a process doesn't change safely once
/// it runs, and hands on to the one that it becomes: the same program with the same arguments, under the same number.
///
/// # Errors
/// If the program can't be started again.
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
