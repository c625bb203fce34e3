//! Repeats work in rounds until a signal.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use tokio::time::sleep;

use crate::command::signals::stop_on_signal;
use crate::command::terminal::tell;
use crate::telemetry::chain;

/// Works until the end or a signal. If the work is repeated, a signal is its regular end.
pub(super) async fn until_signal(
    every: Option<Duration>,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<ExitCode> {
    let stopped = stop_on_signal()?;
    tokio::select! {
        done = work => done?,
        () = stopped.cancelled() => if every.is_none() {
            bail!("interrupted: the next call goes on from here")
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one round. With `every`, repeats it after this pause, and prints the error of a failed round.
pub(super) async fn repeat(
    every: Option<Duration>,
    mut round: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    loop {
        let done = round().await;
        let Some(every) = every else { return done };
        if let Err(error) = done {
            tell(&chain(error.as_ref()));
        }
        sleep(every).await;
    }
}
