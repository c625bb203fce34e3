//! Waiting for what comes about sooner or later.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Tries until it succeeds. An error: the last one, after so long.
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

/// Looks until the condition holds. False: it didn't for so long.
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
