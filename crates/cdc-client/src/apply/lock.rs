//! Names the sessions that hold a lock for which a statement waits.

use std::convert::Infallible;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::sleep;

use crate::apply::connections::TargetConnections;
use crate::apply::{During, Error, TransactionFailure};

/// The pause between two looks at the locks. The first look comes after one pause.
const PAUSE: Duration = Duration::from_secs(1);

/// Returns the process of the session on the server. With a pooler it is valid until the end of the transaction.
pub(super) async fn process(conn: &mut PgConnection) -> Result<i32, Error> {
    sqlx::query_scalar("-- apply.lock.process\n select pg_backend_pid()").fetch_one(conn).await.during("to begin")
}

/// Does the work of a process. If a lock is not acquired in time, the error names the sessions that held it.
pub(super) async fn name_holders<T>(
    connections: &TargetConnections,
    process: i32,
    work: impl Future<Output = Result<T, impl Into<TransactionFailure>>>,
) -> Result<T, TransactionFailure> {
    let mut last = None;
    let done = tokio::select! {
        biased;
        done = work => done,
        never = watch(connections, process, &mut last) => match never {},
    };
    done.map_err(|failure| match (failure.into(), last) {
        (TransactionFailure { error: Error::Locked { action, .. }, member }, Some(holder)) => {
            TransactionFailure { error: Error::Locked { action, holder }, member }
        }
        (failure, _) => failure,
    })
}

/// Keeps the holders of the lock for which the process waits in `last`. Uses another connection, because the holders
/// are unknown once Postgres gives up. Without that connection they stay unknown.
async fn watch(connections: &TargetConnections, process: i32, last: &mut Option<String>) -> Infallible {
    loop {
        sleep(PAUSE).await;
        if let Ok(Some(found)) = connections.holders(process).await {
            *last = Some(found);
        }
    }
}
