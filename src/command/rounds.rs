//! Repeats work in rounds until a signal.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use tokio::time::sleep;

use crate::command::signals::stop_on_signal;
use crate::command::terminal::print_notice;
use crate::telemetry::chain;

/// Runs `work` until it ends or a signal stops it. With `every`, a signal is the normal end.
pub(super) async fn until_signal(
    every: Option<Duration>,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<ExitCode> {
    let stopped = stop_on_signal()?;
    tokio::select! {
        done = work => done?,
        () = stopped.cancelled() => if every.is_none() {
            bail!("interrupted: run the command again to continue from here")
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one round. With `every`, repeats the round after each pause, and prints the error of a failed round.
pub(super) async fn repeat(
    every: Option<Duration>,
    mut round: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    loop {
        let done = round().await;
        let Some(every) = every else { return done };
        if let Err(error) = done {
            print_notice(&chain(error.as_ref()));
        }
        sleep(every).await;
    }
}
