//! What a server says of itself in `postmaster.pid`. The file outlives a killed server, so its process id is a claim,
//! not a fact.

use std::path::PathBuf;

use crate::files::HeldFolder;

/// The file's name in a data folder.
pub(super) const NAME: &str = "postmaster.pid";

/// It names two folders and a few numbers.
const MAX_BYTES: u64 = 16 << 10;

/// The lines of `postmaster.pid` that matter here (Postgres: `src/include/utils/pidfile.h`).
#[derive(Debug, PartialEq)]
pub(super) struct PidFile {
    pub(super) pid: i32,
    pub(super) socket_folder: PathBuf,
    pub(super) ready: bool,
}

impl PidFile {
    /// `None` where there is none, or it is still being written.
    pub(super) fn read(data: &HeldFolder) -> Option<PidFile> {
        PidFile::parse(&data.read(NAME, MAX_BYTES).ok()?)
    }

    fn parse(text: &str) -> Option<PidFile> {
        let mut lines = text.lines();
        Some(PidFile {
            pid: lines.next()?.trim().parse().ok()?,
            // A server that has just started has written its process id and little else.
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
    fn a_server_is_ready_by_its_eighth_line() {
        let expected = PidFile { pid: 4711, socket_folder: PathBuf::from("/tmp/cdc-export-1"), ready: true };
        assert_eq!(PidFile::parse(&format!("{WHOLE}ready   \n")), Some(expected));
    }

    #[test]
    fn a_server_that_starts_or_stops_is_not_ready() {
        for status in ["starting", "stopping", "standby", ""] {
            let file = PidFile::parse(&format!("{WHOLE}{status}\n")).unwrap();
            assert!(!file.ready, "{status}");
        }
        assert!(!PidFile::parse("4711\n/data").unwrap().ready);
        assert_eq!(PidFile::parse(""), None);
    }
}
