//! stub
use anyhow::Result;
pub(crate) async fn run(_seed: u64, _only: Option<&String>) -> Result<bool> {
    Ok(false)
}
