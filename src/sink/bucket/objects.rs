//! The objects of a bucket below its prefix, and the clients that reach them.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange};

use crate::sink::Error;
use crate::sink::bucket::address::{Address, Client};
use crate::sink::bucket::failure::is_no_object;

/// How long a small request may take.
const SMALL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long that of a part may take, unless it is large.
const PART_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a store may be silent that completes an upload or sends an object.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

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
    /// For requests that are small.
    pub(super) store: Client,
    /// For parts.
    pub(super) parts: Client,
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
        let Settings { address, part_bytes, uploads, stall } = &settings;
        // As long as it takes for a part beside the others, on a line of 1 Mbit/s.
        let slow = Duration::from_secs((part_bytes * uploads) as u64 / (128 << 10));
        let hasty = ClientOptions::new().with_timeout(SMALL_TIMEOUT);
        let parts = ClientOptions::new().with_timeout(PART_TIMEOUT.max(slow).min((*stall).max(SMALL_TIMEOUT)));
        let patient = ClientOptions::new().with_timeout_disabled().with_read_timeout(SILENCE_TIMEOUT);
        let client = |options| address.client(options).map_err(Error::settings);
        let (store, parts, patient) = (client(hasty)?, client(parts)?, client(patient)?);
        Ok(Objects { settings, store, parts, patient })
    }

    /// The key of what has this name below the prefix.
    pub(super) fn key(&self, name: &str) -> Path {
        Path::from_iter(self.settings.address.prefix.parts().chain(Path::from(name).parts()))
    }

    /// Whether there is no object: by the store's own word, which an answer without a body doesn't have.
    pub(super) async fn lacks(&self, key: &Path) -> Result<bool, Error> {
        let options = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
        match self.store.get_opts(key, options).await {
            Ok(_) => Ok(false),
            Err(error) if is_no_object(&error) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// The content of a small object, nothing of a large one; `None`: there is none.
    pub(super) async fn small(&self, key: &Path) -> Result<Option<Bytes>, Error> {
        self.whole(key, 64 << 10).await
    }

    /// The content of an object, nothing of one that has more than so many bytes; `None`: there is none.
    pub(super) async fn whole(&self, key: &Path, most: u64) -> Result<Option<Bytes>, Error> {
        match self.store.get_opts(key, GetOptions::default()).await {
            // Whoever may write to the bucket may have put a large one there.
            Ok(found) if found.meta.size > most => Ok(Some(Bytes::new())),
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(error) if is_no_object(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A key that was given out by [`Objects::key`], read again.
pub(super) fn path(key: &str) -> Result<Path, Error> {
    Ok(Path::parse(key).map_err(object_store::Error::from)?)
}
