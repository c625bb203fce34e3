//! The system user that runs Postgres, and the programs that it runs.
//!
//! Postgres refuses to run as root. If this process is root, it runs Postgres as another user. Otherwise Postgres runs
//! as the user of this process.

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use nix::unistd::{Uid, User, geteuid};
use tokio::io::AsyncWriteExt;

use crate::Error;

const PATH_OF_OTHER: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The user that runs `initdb` and `postgres` and owns the cluster.
#[derive(Clone, Debug)]
pub(super) enum Account {
    Own,
    Other { uid: u32, gid: u32 },
}

impl Account {
    /// Selects the account. For root that is the owner of an existing cluster, else `postgres`, else `nobody`.
    pub(super) fn for_cluster(cluster: &Path) -> Result<Account, Error> {
        if !geteuid().is_root() {
            return Ok(Account::Own);
        }
        if let Ok(found) = fs::metadata(cluster)
            && found.uid() != 0
        {
            return Ok(Account::Other { uid: found.uid(), gid: found.gid() });
        }
        // An error of the user database counts as a missing user.
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .map(|user| Account::Other { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
            .ok_or(Error::NoAccount)
    }

    /// Returns a command that the account's user runs in `folder`. That user may not be able to enter this process's
    /// working folder.
    ///
    /// The command has its own process group, so that Ctrl-C stops only this process. If this process is root, the
    /// command does not inherit its environment, which may contain secrets.
    pub(super) fn command(&self, program: impl AsRef<Path>, folder: &Path) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(folder).stdin(Stdio::null()).process_group(0);
        if let Account::Other { uid, gid } = self {
            command.uid(*uid).gid(*gid).env_clear().env("PATH", PATH_OF_OTHER);
        }
        command
    }

    /// Makes the account's user the owner of a file or folder of this process's user.
    pub(super) fn take(&self, path: &Path) -> io::Result<()> {
        match self {
            Account::Own => Ok(()),
            Account::Other { uid, gid } => chown(path, Some(*uid), Some(*gid)),
        }
    }

    pub(super) fn uid(&self) -> u32 {
        match self {
            Account::Own => geteuid().as_raw(),
            Account::Other { uid, .. } => *uid,
        }
    }

    pub(super) fn name(&self) -> String {
        let user = User::from_uid(Uid::from_raw(self.uid())).ok().flatten();
        user.map_or(self.uid().to_string(), |user| user.name)
    }

    /// Returns true if the account's user can enter an existing folder. Tests it by entering the folder, because the
    /// mode bits do not include access control lists and mount options.
    pub(super) fn reaches(&self, folder: &Path) -> bool {
        self.command("/bin/sh", folder).args(["-c", ":"]).status().is_ok()
    }
}

/// Runs a program until it ends, with `input` as its standard input. Returns its standard output. Ends the program if
/// the future is dropped.
pub(super) async fn run(mut command: Command, input: &[u8]) -> Result<String, Error> {
    let program = PathBuf::from(command.get_program());
    let failed = |detail: String| Error::Program { program: program.clone(), detail };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let spawned = tokio::process::Command::from(command).kill_on_drop(true).spawn();
    let mut child = spawned.map_err(|error| failed(error.to_string()))?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that ends before it has read everything explains that itself.
            let _ = stdin.write_all(input).await;
        }
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = last_error(&String::from_utf8_lossy(&output.stderr));
        return Err(failed(said.unwrap_or_else(|| output.status.to_string())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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
