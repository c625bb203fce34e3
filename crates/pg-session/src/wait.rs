//! Logs what a process waits for, so that nobody has to guess why it says nothing.

use std::pin::pin;
use std::time::Duration;

/// Target of the events about waits. Commands that otherwise log only errors include them.
pub const TARGET: &str = "cdc_export::waits";

/// The time after which a wait is logged.
pub const UNLOGGED: Duration = Duration::from_secs(10);
/// The interval of the following log lines.
const PERIOD: Duration = Duration::from_secs(60);

/// Awaits `work`. If that takes long, logs `wait` and then repeats the line: what the process waits for, and the
/// remedy.
pub async fn named<T>(wait: &str, work: impl Future<Output = T>) -> T {
    let (mut work, mut pause) = (pin!(work), failpoint::time("wait.unlogged", UNLOGGED));
    loop {
        match tokio::time::timeout(pause, &mut work).await {
            Ok(done) => return done,
            Err(_) => tracing::warn!(target: TARGET, event = "waits", "{wait}"),
        }
        pause = PERIOD;
    }
}
