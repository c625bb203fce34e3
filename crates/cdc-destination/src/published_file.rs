//! Files that clients download.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncRead;

use crate::Error;

/// A published file, open. It is the file that was exported, even if another file gets its name meanwhile.
#[async_trait]
pub trait PublishedFile: fmt::Debug + Send + Sync {
    /// Returns a URL at which anybody can fetch the file for this long, or `None` if the destination has no such URLs.
    async fn url(&self, lifetime: Duration) -> Result<Option<String>, Error>;

    /// Reads `length` bytes from the offset `from`.
    async fn part(self: Box<Self>, from: u64, length: u64) -> Result<Pin<Box<dyn AsyncRead + Send>>, Error>;
}
