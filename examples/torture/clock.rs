//! Sets the database's clock. The server's processes run with libfaketime (Debian's `faketime`), and a file has the
//! offset. The machine's own clock, and so the clock of this program and of the replicas, is unchanged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tokio::process::Command;

use crate::environment;
use crate::random::Random;

/// Largest offset in seconds by which the database's clock is mostly ahead. It also goes back, but never behind the
/// machine's. A signal handler reads the machine's clock through the library. If that were ahead, Postgres's timers
/// would now and then end an idle transaction within a second.
const FURTHEST: u64 = 600;

/// Days by which the clock is ahead now and then: more than [`KEPT_FOR`] allows, so that everything looks too old. The
/// oracle then looks for files, jobs and positions that are gone.
const FAR_DAYS: (u64, u64) = (20, 60);

/// `RETAIN_FILES`, `RETAIN_JOBS` and `CHANGE_LOG_MAX_AGE` of the replicas. A position is given up after twice that
/// time. A run takes minutes, so nothing is ever too old.
pub(crate) const KEPT_FOR: &str = "7d";

pub(crate) struct Clock {
    library: PathBuf,
    /// File with the offset. The server's processes read it once a second, so they may disagree for that long.
    file: PathBuf,
}

impl Clock {
    /// Finds the library in `FAKETIME_LIB`, or where Debian has it. Without a library, nobody sets the clock.
    pub(crate) fn find(folder: &Path) -> Result<Option<Clock>> {
        let debian = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
            .map(|machine| format!("/usr/lib/{machine}/faketime/libfaketime.so.1"));
        let library =
            environment("FAKETIME_LIB").into_iter().chain(debian).map(PathBuf::from).find(|path| path.exists());
        let clock = library.map(|library| Clock { library, file: folder.join("clock") });
        if let Some(clock) = &clock {
            clock.set(0)?;
        }
        Ok(clock)
    }

    pub(crate) fn set(&self, seconds: i64) -> Result<()> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n"))?;
        Ok(std::fs::rename(new, &self.file)?)
    }

    /// Makes a server use this clock. Intervals that it measures by a clock that nobody can set stay right.
    pub(crate) fn rule(&self, server: &mut Command) {
        server
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
    }
}

/// Returns the next offset in seconds, and the time until the one after it. A clock that is days ahead stays so for
/// longer than the pause between two purges of the change log.
pub(crate) fn draw(random: &mut Random) -> (i64, Duration) {
    match random.below(100) {
        0..20 => (0, random.millis(3_000, 15_000)),
        20..40 => (random.between(FAR_DAYS.0, FAR_DAYS.1).cast_signed() * 86_400, random.millis(12_000, 20_000)),
        _ => (random.between(0, FURTHEST).cast_signed(), random.millis(3_000, 15_000)),
    }
}
