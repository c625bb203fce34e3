//! A call of a client gets its answer in time, if only that there is none.

use std::time::Duration;

use crate::service::{CALL_TIMEOUT, COUNTING_TIMEOUT, Error};
use crate::{failpoint, source, store};

/// How long a call of a client may take: [`CALL_TIMEOUT`]. Tests that are not about it wait longer for a busy machine.
pub fn call_timeout() -> Duration {
    failpoint::time("service.call", CALL_TIMEOUT)
}

/// A look at a table, which somebody may have locked.
pub(super) async fn on_table<T>(look: impl Future<Output = Result<T, source::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(COUNTING_TIMEOUT, look).await {
        Ok(Ok(seen)) => Ok(seen),
        Ok(Err(source::Error::Mismatch(faults))) => Err(Error::Mismatch(faults)),
        Ok(Err(error @ (source::Error::NotReadable(_) | source::Error::Denied { .. }))) => {
            Err(Error::NotReadable(error))
        }
        Ok(Err(error)) => Err(Error::Table(Some(error))),
        Err(_) => Err(Error::Table(None)),
    }
}

/// A statement of the store.
pub(super) async fn with_timeout<T>(call: impl Future<Output = Result<T, store::Error>>) -> Result<T, Error> {
    Ok(store::with_timeout(call_timeout(), call).await?)
}
