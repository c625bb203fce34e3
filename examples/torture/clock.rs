//! The database's clock, which somebody sets: libfaketime (Debian's `faketime`) in the server's processes, and a file
//! that says how far they are off. The machine's own clock, and with it ours and the replicas', stays as it is.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tokio::process::Command;

use crate::environment;
use crate::random::Random;

/// The largest distance, in seconds, by which it is ahead. It goes back too, but never behind the machine's: a signal
/// handler sees that one through the library, so that Postgres's timers would end each transaction that idles now and
/// then in a second.
const FURTHEST: u64 = 600;

pub(crate) struct Clock {
    library: PathBuf,
    /// Read by the server's processes once a second: for so long they may disagree.
    file: PathBuf,
}

impl Clock {
    /// With the library of `FAKETIME_LIB`, else where Debian has it. Without, nobody sets the clock.
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

    /// Lets a server go by it. What it measures by a clock that nobody can set stays true.
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

pub(crate) fn draw(random: &mut Random) -> i64 {
    let seconds = random.between(0, FURTHEST).cast_signed();
    if random.percent(20) { 0 } else { seconds }
}
