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
    /// Returns the path of the file in a cluster.
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

    const WHOLE: &str = "4711\n/data/postgres\n1771934400\n5432\n/tmp/cdc-export-1\n\n   529  1  \n";

    #[test]
    fn eighth_line_states_that_the_server_is_ready() {
        let expected = PidFile { pid: 4711, socket_folder: PathBuf::from("/tmp/cdc-export-1"), ready: true };
        assert_eq!(PidFile::parse(&format!("{WHOLE}ready   \n")), Some(expected));
    }

    #[test]
    fn starting_or_stopping_server_is_not_ready() {
        for status in ["starting", "stopping", "standby", ""] {
            let file = PidFile::parse(&format!("{WHOLE}{status}\n")).unwrap();
            assert!(!file.ready, "{status}");
        }
        assert!(!PidFile::parse("4711\n/data").unwrap().ready);
        assert_eq!(PidFile::parse(""), None);
    }
}
