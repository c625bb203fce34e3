//! Creates the database cluster in the data folder, completely or not at all, and manages its password. Starts no
//! server.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Output, Stdio};

use crate::binaries::Binaries;
use crate::data_dir::{DataDir, LockedDataDir, SCRATCH};
use crate::files::HeldFolder;
use crate::{DATABASE, Error, ROLE, leftovers};

/// The largest size of the password file. A generated password has 64 characters; the operator may set a longer one.
const PASSWORD_MAX_BYTES: u64 = 1024;

/// Creates the cluster if there is none. Returns the superuser's password.
pub(super) fn ensure(data_dir: &LockedDataDir, binaries: &Binaries) -> Result<String, Error> {
    sweep(data_dir)?;
    if !data_dir.cluster().exists() {
        return initialise(data_dir, binaries);
    }
    match read_password(data_dir) {
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            replace_password(data_dir, binaries)
        }
        found => found,
    }
}

/// Reads the superuser's password from its file.
///
/// The file must belong to the account. Otherwise the account's user could make root read another file as the password.
pub(super) fn read_password(data_dir: &DataDir) -> Result<String, Error> {
    let path = data_dir.password();
    let text = data_dir.account.read_file(&path, PASSWORD_MAX_BYTES).map_err(Error::file("read", &path))?;
    Ok(text.trim_end().to_owned())
}

/// Runs `initdb` and creates the database in a scratch folder, then renames the folder. So the final folder never
/// contains an incomplete cluster.
fn initialise(data_dir: &LockedDataDir, binaries: &Binaries) -> Result<String, Error> {
    tracing::info!(event = "postgres_initialising", folder = %data_dir.cluster().display(), major = binaries.major, "creating a Postgres data folder");
    let password = new_password();
    write_password(data_dir, &password)?;
    let scratch = data_dir.make_scratch()?;
    let initdb = binaries.initdb();
    let output = data_dir
        .account
        .command(&initdb, &scratch)
        // The messages are searched for the error, so they must not be translated.
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .args(["--auth=scram-sha-256", "--data-checksums"])
        .args(["--encoding=UTF8", "--locale=C", "--username", ROLE])
        .arg("--pwfile")
        .arg(data_dir.password())
        .arg("--pgdata")
        .arg(&scratch)
        .output()
        .map_err(|source| Error::Program { program: initdb, source })?;
    require_success(data_dir, &output)?;
    single_user(data_dir, binaries, &scratch, &format!("create database {DATABASE}"))?;
    let data = data_dir.cluster();
    fs::rename(&scratch, &data).map_err(Error::file("rename a new cluster to", &data))?;
    data_dir.sync()?;
    Ok(password)
}

/// Sets a new password for a cluster whose password file is missing.
fn replace_password(data_dir: &LockedDataDir, binaries: &Binaries) -> Result<String, Error> {
    tracing::warn!(event = "postgres_password_replaced", file = %data_dir.password().display(), "the password file is missing, setting a new password");
    leftovers::clear(&data_dir.cluster(), &data_dir.account)?;
    let password = new_password();
    let statement = format!("alter role {ROLE} password '{password}'");
    single_user(data_dir, binaries, &data_dir.cluster(), &statement)?;
    // The file is written after the role is changed. After a crash between the two there is no file, so the next start
    // sets a new password.
    write_password(data_dir, &password)?;
    Ok(password)
}

/// Runs one statement in the cluster without a server.
fn single_user(data_dir: &LockedDataDir, binaries: &Binaries, data: &Path, statement: &str) -> Result<(), Error> {
    let postgres = binaries.postgres();
    let failed = |source| Error::Program { program: postgres.clone(), source };
    let mut child = data_dir
        .account
        .command(&postgres, data)
        .env("LC_ALL", "C")
        .args(["--single", "-D"])
        .arg(data)
        // The statement is passed by standard input, not as an argument, because it may contain the password.
        .args(["-c", "exit_on_error=on"])
        .args(["-c", "log_min_error_statement=panic"])
        .args(["-c", "log_destination=stderr"])
        .args(["-c", "logging_collector=off"])
        .arg("postgres")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let written = match child.stdin.take() {
        Some(mut stdin) => writeln!(stdin, "{statement}"),
        None => Ok(()),
    };
    let output = child.wait_with_output().map_err(failed)?;
    // The status is checked first, because the program's message is more precise than the error of the broken pipe.
    require_success(data_dir, &output)?;
    written.map_err(failed)
}

fn require_success(data_dir: &LockedDataDir, output: &Output) -> Result<(), Error> {
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(Error::Initialise {
        folder: data_dir.cluster(),
        detail: last_error(&text).unwrap_or_else(|| output.status.to_string()),
    })
}

/// Returns the line of a program's output that best explains its failure: the last error, else the last line.
pub(super) fn last_error(text: &str) -> Option<String> {
    let mut lines = text.lines().rev().filter(|line| !line.trim().is_empty());
    let last = lines.clone().next()?;
    let error =
        lines.find(|line| ["FATAL:", "PANIC:", "ERROR:", "error:"].iter().any(|severity| line.contains(severity)));
    // Escape sequences must not reach the terminal of the user who started this process, who may be root.
    Some(error.unwrap_or(last).trim().replace(char::is_control, " "))
}

/// Generates a password from 244 random bits. It has letters and digits only, so it needs no quoting.
fn new_password() -> String {
    let half = || uuid::Uuid::new_v4().simple().to_string();
    half() + &half()
}

/// Writes the password file by a rename, so that after a crash it is complete or missing.
fn write_password(data_dir: &LockedDataDir, password: &str) -> Result<(), Error> {
    let path = data_dir.password();
    let new = path.with_extension("password.new");
    let write = || {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = data_dir.account.create_file(&new)?;
        writeln!(file, "{password}")?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(Error::file("write", &path))?;
    data_dir.sync()
}

/// Removes the scratch folders of crashed attempts, after ending the processes that still use them.
fn sweep(data_dir: &LockedDataDir) -> Result<(), Error> {
    let entries = fs::read_dir(&data_dir.path).map_err(Error::file("list", &data_dir.path))?;
    for entry in entries.flatten() {
        let is_scratch = entry.file_name().to_string_lossy().starts_with(SCRATCH);
        // An attempt never creates a link with that name.
        if !is_scratch || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        // The contents are removed only if the folder belongs to the account. Otherwise the account's user could make
        // root remove the files of others.
        let removed = match HeldFolder::open(&path, &data_dir.account) {
            Ok(_) => {
                leftovers::clear(&path, &data_dir.account)?;
                data_dir.account.remove_folder(&path)
            }
            // A crash between the creation of a folder and the change of its owner leaves an empty folder of root's.
            Err(_) => fs::remove_dir(&path),
        };
        match removed {
            Ok(()) => {
                tracing::info!(
                    event = "postgres_scratch_removed",
                    folder = path.to_string_lossy().escape_debug().to_string(),
                    "removed an incomplete Postgres data folder"
                );
            }
            // No new attempt uses this name, so the next start can remove the rest.
            Err(error) => {
                tracing::warn!(event = "postgres_scratch_left", folder = path.to_string_lossy().escape_debug().to_string(), error = %error, "can't remove an incomplete Postgres data folder");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_error_is_preferred_to_last_line() {
        let log = "LOG:  starting\nFATAL:  no room\nLOG:  database system is shut down\n\n";
        assert_eq!(last_error(log).as_deref(), Some("FATAL:  no room"));
        assert_eq!(last_error("libpq.so: missing\n").as_deref(), Some("libpq.so: missing"));
        assert_eq!(last_error("\n"), None);
    }
}
