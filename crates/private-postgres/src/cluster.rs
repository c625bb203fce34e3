//! The database cluster in the data folder: made once, whole or not at all, and its password. It starts no server.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Output, Stdio};

use crate::binaries::Binaries;
use crate::data_dir::{DataDir, LockedDataDir, SCRATCH};
use crate::files::HeldFolder;
use crate::{DATABASE, Error, ROLE, leftovers};

/// Our passwords have 64 characters and a newline; the operator may have set a longer one.
const PASSWORD_MAX_BYTES: u64 = 1024;

/// Makes the cluster where there is none. Returns the superuser's password.
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

/// The superuser's password, from its file. The file must belong to the account, whose user runs the server and so may
/// know the password: otherwise that user could have root read another file for it.
pub(super) fn read_password(data_dir: &DataDir) -> Result<String, Error> {
    let path = data_dir.password();
    let text = data_dir.account.read_file(&path, PASSWORD_MAX_BYTES).map_err(Error::file("read", &path))?;
    Ok(text.trim_end().to_owned())
}

/// Runs `initdb` and makes the database in a scratch folder, then renames that: a half-made cluster is never in the
/// data's place.
fn initialise(data_dir: &LockedDataDir, binaries: &Binaries) -> Result<String, Error> {
    tracing::info!(event = "postgres_initialising", folder = %data_dir.cluster().display(), major = binaries.major, "making a Postgres data folder");
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

/// Sets another password for a cluster whose password file is gone.
fn replace_password(data_dir: &LockedDataDir, binaries: &Binaries) -> Result<String, Error> {
    tracing::warn!(event = "postgres_password_replaced", file = %data_dir.password().display(), "the password file is gone, setting a new password");
    leftovers::clear(&data_dir.cluster(), &data_dir.account)?;
    let password = new_password();
    let statement = format!("alter role {ROLE} password '{password}'");
    single_user(data_dir, binaries, &data_dir.cluster(), &statement)?;
    // Written after the role is changed: after a crash in between there is no file, and the next start comes here
    // again.
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
        // The standard input, not an argument, carries the statement: it may hold the password.
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
    // The status comes first: the message of a program that failed early says more than the broken pipe.
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

/// The line of a program's output that best says why it failed: the last error, else the last line.
pub(super) fn last_error(text: &str) -> Option<String> {
    let mut lines = text.lines().rev().filter(|line| !line.trim().is_empty());
    let last = lines.clone().next()?;
    let error =
        lines.find(|line| ["FATAL:", "PANIC:", "ERROR:", "error:"].iter().any(|severity| line.contains(severity)));
    // Escape sequences must not reach the terminal of the user who started us, perhaps root.
    Some(error.unwrap_or(last).trim().replace(char::is_control, " "))
}

/// 244 random bits of the operating system, as letters and digits that need no quoting.
fn new_password() -> String {
    let half = || uuid::Uuid::new_v4().simple().to_string();
    half() + &half()
}

/// Writes the password file by a rename, so that a crash leaves the whole password or none.
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

/// Removes the scratch folders that crashed attempts left, after ending the processes that still use them.
fn sweep(data_dir: &LockedDataDir) -> Result<(), Error> {
    let entries = fs::read_dir(&data_dir.path).map_err(Error::file("list", &data_dir.path))?;
    for entry in entries.flatten() {
        let is_scratch = entry.file_name().to_string_lossy().starts_with(SCRATCH);
        // An attempt never leaves a link of that name.
        if !is_scratch || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        // The folder's contents are removed only where the folder is the account's: otherwise its user could have root
        // remove files of others.
        let removed = match HeldFolder::open(&path, &data_dir.account) {
            Ok(_) => {
                leftovers::clear(&path, &data_dir.account)?;
                data_dir.account.remove_folder(&path)
            }
            // A crash between making a folder and giving it away leaves one with nothing in it.
            Err(_) => fs::remove_dir(&path),
        };
        match removed {
            Ok(()) => {
                tracing::info!(
                    event = "postgres_scratch_removed",
                    folder = path.to_string_lossy().escape_debug().to_string(),
                    "removed a half-made Postgres data folder"
                );
            }
            // No new attempt takes this name, so the rest can wait for the next start.
            Err(error) => {
                tracing::warn!(event = "postgres_scratch_left", folder = path.to_string_lossy().escape_debug().to_string(), error = %error, "can't remove a half-made Postgres data folder");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_quoted_before_the_last_line() {
        let log = "LOG:  starting\nFATAL:  no room\nLOG:  database system is shut down\n\n";
        assert_eq!(last_error(log).as_deref(), Some("FATAL:  no room"));
        assert_eq!(last_error("libpq.so: missing\n").as_deref(), Some("libpq.so: missing"));
        assert_eq!(last_error("\n"), None);
    }
}
