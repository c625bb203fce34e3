//! Exports that can be applied to tables of another Postgres.

use std::sync::Arc;

use tokio::time::{Duration, Instant, sleep};

use crate::Error;
use crate::apply::input::Input;
use crate::apply::{self, Applied, MemberExport, Target, TransactionFailure};
use crate::observer::Observer;
use cdc_manifest::Manifest;
use pg_session::failure::chain;

const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// An export, and what is needed to apply it.
pub(super) struct ReadyExport {
    pub(super) target: Target,
    pub(super) manifest: Arc<Manifest>,
    /// Opens the export's files, in their order.
    pub(super) open: Box<dyn Fn() -> Vec<Input> + Send + Sync>,
    pub(super) observer: Arc<dyn Observer>,
}

impl ReadyExport {
    fn member(&self) -> MemberExport<'_> {
        MemberExport { target: &self.target, manifest: &self.manifest, files: (self.open)() }
    }

    /// Applies the export in a transaction of its own. Retries while the target is unavailable.
    pub(super) async fn apply(&self) -> Result<Applied, Error> {
        let applied = apply_together(&[self]).await.map_err(|failure| failure.error)?;
        applied.into_iter().flatten().next().ok_or_else(|| Error::refused("the export has no outcome"))
    }
}

/// Applies exports in one transaction, as [`apply::apply`] does. Retries while the target is unavailable.
pub(super) async fn apply_together(exports: &[&ReadyExport]) -> Result<Vec<Option<Applied>>, TransactionFailure> {
    let Some(first) = exports.first() else { return Ok(Vec::new()) };
    let call = async || apply::apply(exports.iter().map(|export| export.member()).collect()).await;
    while_unavailable(&*first.observer, call).await
}

/// Calls the target. Retries while the target is unavailable: the last call begins [`RETRY_TIMEOUT`] after the first
/// failure.
pub(super) async fn while_unavailable<T>(
    observer: &dyn Observer,
    mut call: impl AsyncFnMut() -> Result<T, TransactionFailure>,
) -> Result<T, TransactionFailure> {
    let mut failing_since = None;
    loop {
        let begun = Instant::now();
        let failure = match call().await {
            Err(failure) if failure.error.may_pass() => failure,
            done => return done,
        };
        match failing_since {
            None => observer.notice(&format!("{}; trying again for a minute", chain(&failure.error))),
            Some(since) if begun < since + RETRY_TIMEOUT => {}
            Some(_) => return Err(failure),
        }
        failing_since.get_or_insert_with(Instant::now);
        sleep(PAUSE).await;
    }
}
