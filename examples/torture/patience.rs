//! Waits for conditions that hold sooner or later.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Retries until `act` succeeds. Returns the last error after `patience`.
pub(crate) async fn at_last<T, E, F>(patience: Duration, mut act: impl FnMut() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let begun = Instant::now();
    loop {
        match act().await {
            Err(_) if begun.elapsed() < patience => tokio::time::sleep(Duration::from_millis(100)).await,
            done => return done,
        }
    }
}

/// Polls until the condition holds. Returns false if it didn't within `patience`.
pub(crate) async fn eventually(patience: Duration, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<bool> {
    let begun = Instant::now();
    loop {
        if condition().await? {
            return Ok(true);
        }
        if begun.elapsed() > patience {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
