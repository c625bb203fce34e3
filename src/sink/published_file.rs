//! Files that are handed out.

use std::fs::File;
use std::io::SeekFrom;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};

use crate::sink::Error;
#[cfg(feature = "buckets")]
use crate::sink::bucket;

/// As much of a file is read ahead for a client, in bytes; by default tokio would keep up to 2 MiB.
const READ_BYTES: usize = 64 * 1024;

/// A published file, open: the very one that was exported.
#[derive(Debug)]
pub enum PublishedFile {
    /// In a folder.
    Folder(File),
    /// In a bucket.
    #[cfg(feature = "buckets")]
    Object(bucket::Object),
}

impl PublishedFile {
    /// An address that anybody may fetch the file at for so long. `None`: it is in a folder.
    ///
    /// # Errors
    /// If the credentials can't sign one.
    pub async fn url(&self, lifetime: Duration) -> Result<Option<String>, Error> {
        match self {
            PublishedFile::Folder(_) => Ok(None),
            #[cfg(feature = "buckets")]
            PublishedFile::Object(object) => object.url(lifetime).await.map(Some),
        }
    }

    /// `length` bytes from `from` on.
    ///
    /// # Errors
    /// If the file can't be read there.
    pub async fn part(self, from: u64, length: u64) -> Result<Pin<Box<dyn AsyncRead + Send>>, Error> {
        match self {
            PublishedFile::Folder(file) => {
                let mut file = tokio::fs::File::from_std(file);
                file.set_max_buf_size(READ_BYTES);
                file.seek(SeekFrom::Start(from)).await?;
                Ok(Box::pin(file.take(length)))
            }
            #[cfg(feature = "buckets")]
            PublishedFile::Object(object) => Ok(Box::pin(object.part(from, length).await?)),
        }
    }
}
