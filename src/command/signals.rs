//! The signals that end a command.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that SIGTERM or Ctrl-C cancels; a second signal ends the process at once.
pub(super) fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    // With a handler, even an idle one, a write past `ulimit -f` fails instead of ending the process.
    let mut file_too_large = signal(SignalKind::from_raw(nix::libc::SIGXFSZ))?;
    tokio::spawn(async move { while file_too_large.recv().await.is_some() {} });
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let mut next = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
        next().await;
        tracing::info!(event = "stopping");
        stop.cancel();
        next().await;
        tracing::warn!(event = "stopped_at_once", "a second signal came");
        #[expect(
            clippy::disallowed_methods,
            reason = "who signals twice wants no destructors; Postgres follows by its death signal"
        )]
        std::process::exit(1);
    });
    Ok(token)
}
