//! Reads `postmaster.pid`, in which a server records its process id and state.
//!
//! The file remains after a server was killed, so a caller must verify that the server answers.

use std::fs;
use std::path::{Path, PathBuf};

/// The used lines of `postmaster.pid` (see Postgres's `src/include/utils/pidfile.h`).
#[derive(Debug, PartialEq)]
pub(super) struct PidFile {
    pub(super) pid: u32,
    pub(super) socket_folder: PathBuf,
    pub(super) ready: bool,
}

impl PidFile {
    pub(super) fn path(cluster: &Path) -> PathBuf {
        cluster.join("postmaster.pid")
    }

    /// Reads the file. Returns `None` if there is none, or if its first line is not complete.
    pub(super) fn read(cluster: &Path) -> Option<PidFile> {
        PidFile::parse(&fs::read_to_string(PidFile::path(cluster)).ok()?)
    }

    fn parse(text: &str) -> Option<PidFile> {
        let mut lines = text.lines();
        Some(PidFile {
            pid: lines.next()?.trim().parse().ok()?,
            // A server that has just started may not have written the later lines.
            socket_folder: PathBuf::from(lines.nth(3).unwrap_or_default()),
            ready: lines.nth(2).is_some_and(|status| status.trim() == "ready"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eighth_line_states_that_the_server_is_ready() {
        for (status, ready) in
            [("ready   ", true), ("starting", false), ("stopping", false), ("standby", false), ("", false)]
        {
            let text = format!("4711\n/data/postgres\n1771934400\n5432\n/tmp/cdc-export-1\n\n   529  1  \n{status}\n");
            let expected = PidFile { pid: 4711, socket_folder: PathBuf::from("/tmp/cdc-export-1"), ready };
            assert_eq!(PidFile::parse(&text), Some(expected), "{status}");
        }
        assert!(!PidFile::parse("4711\n/data").unwrap().ready);
        assert_eq!(PidFile::parse(""), None);
    }
}
