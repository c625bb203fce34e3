//! The objects of a bucket below its prefix, and the clients that reach them.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use object_store::GetOptions;
use object_store::path::Path;

use crate::sink::Error;
use crate::sink::bucket::address::{Address, Client};

/// How long a request may take, unless its part is large.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(120);

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which bucket, and how to reach it.
    pub address: Address,
    /// The size of a part, in bytes.
    pub part_bytes: usize,
    /// How many parts of one file are on their way at once.
    pub uploads: usize,
    /// How long a draft waits for the store without any progress.
    pub stall: Duration,
}

/// The objects of a bucket.
pub(super) struct Objects {
    pub(super) settings: Settings,
    /// For requests that are small or have to end in time, parts among them.
    pub(super) store: Client,
    /// For those that may take long: completions, which a store may work at for minutes, and the bodies of objects.
    pub(super) patient: Client,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Objects").field(&self.settings.address).finish()
    }
}

impl Objects {
    pub(super) fn new(settings: Settings) -> Result<Objects, Error> {
        // As long as it takes for a part beside the others, on a line of 1 Mbit/s.
        let parts = settings.part_bytes * settings.uploads;
        let timeout = SHORTEST_TIMEOUT.max(Duration::from_secs(parts as u64 / (128 << 10)));
        let (store, patient) = settings.address.connect(timeout).map_err(Error::settings)?;
        Ok(Objects { settings, store, patient })
    }

    /// The key of what has this name below the prefix.
    pub(super) fn key(&self, name: &str) -> Path {
        Path::from_iter(self.settings.address.prefix.parts().chain(Path::from(name).parts()))
    }

    /// The content of a small object, nothing of a large one; `None`: there is none.
    pub(super) async fn small(&self, key: &Path) -> Result<Option<Bytes>, Error> {
        // Whoever may write to the bucket may have put a large one there.
        const MOST: u64 = 64 << 10;
        match self.store.get_opts(key, GetOptions::default()).await {
            Ok(found) if found.meta.size > MOST => Ok(Some(Bytes::new())),
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A key that was given out by [`Objects::key`], read again.
pub(super) fn path(key: &str) -> Result<Path, Error> {
    Ok(Path::parse(key).map_err(object_store::Error::from)?)
}
