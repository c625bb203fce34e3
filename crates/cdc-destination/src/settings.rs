//! The operator's choice of a destination. The only file that knows which implementations there are.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;

#[cfg(feature = "buckets")]
use crate::bucket::{self, Bucket, archive::BucketArchive};
use crate::folder::Folder;
use crate::folder::archive::FolderArchive;
use crate::folder::destination::FolderDestination;
use crate::{Archive, Destination, Error, Limited};

#[derive(Clone, Debug)]
pub enum Settings {
    Folder(PathBuf),
    #[cfg(feature = "buckets")]
    Bucket(bucket::Settings),
}

impl Settings {
    /// Returns the destination of these settings, limited for the workers of a process. Touches nothing yet.
    pub fn destination(&self) -> Result<Limited, Error> {
        let destination: Arc<dyn Destination> = match self {
            Settings::Folder(path) => Arc::new(FolderDestination::new(Folder::new(path.clone()))),
            #[cfg(feature = "buckets")]
            Settings::Bucket(bucket) => Arc::new(Bucket::new(bucket.clone())?),
        };
        Ok(Limited::new(destination))
    }

    /// Opens the folder or bucket of these settings for reading. `runtime` runs the requests to a bucket.
    pub fn archive(&self, runtime: &Handle) -> Result<Box<dyn Archive>, Error> {
        let _ = runtime;
        Ok(match self {
            Settings::Folder(path) => Box::new(FolderArchive::open(path)?),
            #[cfg(feature = "buckets")]
            Settings::Bucket(bucket) => Box::new(BucketArchive::open(Bucket::new(bucket.clone())?, runtime.clone())?),
        })
    }

    /// Returns the path of the folder, or `None` if the files go to a bucket.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Settings::Folder(path) => Some(path),
            #[cfg(feature = "buckets")]
            Settings::Bucket(_) => None,
        }
    }
}

/// Writes the destination as the settings have it: a path or a URL.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Settings::Folder(path) => path.display().fmt(f),
            #[cfg(feature = "buckets")]
            Settings::Bucket(bucket) => bucket.address.fmt(f),
        }
    }
}
