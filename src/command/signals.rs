//! The signals that stop a command.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a token that SIGTERM or Ctrl-C cancels. A second signal ends the process at once.
pub(super) fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    // With this handler, a write beyond `ulimit -f` returns an error instead of ending the process.
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
        tracing::warn!(event = "stopped_at_once", "received a second signal: exiting without cleanup");
        #[expect(
            clippy::disallowed_methods,
            reason = "a second signal requests an exit without destructors; the next start stops the private Postgres"
        )]
        std::process::exit(1);
    });
    Ok(token)
}
