//! Time limits of calls: every call returns a result or an error in time.

use std::time::Duration;

use crate::service::{CALL_TIMEOUT, COUNTING_TIMEOUT, Error};
use crate::store;

/// Returns the time limit of a call: [`CALL_TIMEOUT`]. Most tests use a longer one because test machines are busy.
pub fn call_timeout() -> Duration {
    failpoint::time("service.call", CALL_TIMEOUT)
}

/// Runs a query of a table under a time limit, because the table may be locked.
pub(super) async fn on_table<T>(read: impl Future<Output = Result<T, cdc_capture::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(COUNTING_TIMEOUT, read).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(cdc_capture::Error::Mismatch(faults))) => Err(Error::Mismatch(faults)),
        Ok(Err(error @ (cdc_capture::Error::NotReadable(_) | cdc_capture::Error::Denied { .. }))) => {
            Err(Error::NotReadable(error))
        }
        Ok(Err(error)) => Err(Error::Table(Some(error))),
        Err(_) => Err(Error::Table(None)),
    }
}

pub(super) async fn with_timeout<T>(call: impl Future<Output = Result<T, store::Error>>) -> Result<T, Error> {
    Ok(store::with_timeout(call_timeout(), call).await?)
}
