//! What an operator says of where the files go.

use std::fmt;
use std::path::{Path, PathBuf};

#[cfg(feature = "buckets")]
use crate::sink::bucket;

/// What an operator may set.
#[derive(Clone, Debug)]
pub enum Settings {
    /// The files go to a folder on a disk of this host.
    Folder {
        /// The folder.
        path: PathBuf,
        /// The mode of the files; `None`: what the umask leaves.
        file_mode: Option<u32>,
    },
    /// They go to a bucket.
    #[cfg(feature = "buckets")]
    Bucket(bucket::Settings),
}

impl Settings {
    /// The folder on a disk of this host, if the files go to one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Settings::Folder { path, .. } => Some(path),
            #[cfg(feature = "buckets")]
            Settings::Bucket(_) => None,
        }
    }
}

/// As it is called in the settings: a path, or a URL.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Settings::Folder { path, .. } => path.display().fmt(f),
            #[cfg(feature = "buckets")]
            Settings::Bucket(bucket) => bucket.address.fmt(f),
        }
    }
}
