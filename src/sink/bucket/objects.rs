//! The objects of a bucket below its prefix, and the clients that reach them.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStoreExt, UpdateVersion};

use crate::sink::Error;
use crate::sink::bucket::address::{Address, Client};
use crate::sink::bucket::failure::{cause, is_no_object};

/// How long a small request may take.
const SMALL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long that of a part may take, unless it is large.
const PART_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a store may be silent that completes an upload or sends an object.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// The largest content that a small object may have.
pub(super) const SMALL_BYTES: u64 = 64 << 10;

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
        let client = |options| address.client(options).map_err(|error| wrong(address, &error));
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

    /// Removes an object; one that isn't there is fine, as another process may have been first.
    pub(super) async fn delete(&self, key: &Path) -> Result<(), Error> {
        let error = match self.store.delete(key).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // Azure's client sends deletions in a batch, whose answers have no codes of the store's own.
        let is_of_a_batch = matches!(error, object_store::Error::NotFound { .. });
        if is_no_object(&error) || (is_of_a_batch && self.lacks(key).await?) { Ok(()) } else { Err(error.into()) }
    }

    /// The content of a small object, nothing of a large one; `None`: there is none.
    pub(super) async fn small(&self, key: &Path) -> Result<Option<Bytes>, Error> {
        self.whole(key, SMALL_BYTES).await
    }

    /// The content of an object, nothing of one that has more than so many bytes; `None`: there is none.
    pub(super) async fn whole(&self, key: &Path, most: u64) -> Result<Option<Bytes>, Error> {
        Ok(self.versioned(key, most).await?.map(|(content, _)| content))
    }

    /// Returns the same as [`Objects::whole`], and the version that a conditional PUT replaces.
    pub(super) async fn versioned(&self, key: &Path, most: u64) -> Result<Option<(Bytes, UpdateVersion)>, Error> {
        let found = match self.store.get_opts(key, GetOptions::default()).await {
            Ok(found) => found,
            Err(error) if is_no_object(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        // Whoever may write to the bucket may have put a large one there.
        let content = if found.meta.size > most { Bytes::new() } else { found.bytes().await? };
        Ok(Some((content, version)))
    }
}

/// Why no client could be made. Which variable is to blame isn't in the client's own words.
fn wrong(address: &Address, error: &object_store::Error) -> Error {
    let cause = cause(error);
    Error::Settings(std::io::Error::other(match address.culprit() {
        Some(variable) => format!("{variable}: {cause}"),
        None => cause,
    }))
}

/// A key that was given out by [`Objects::key`], read again.
pub(super) fn path(key: &str) -> Result<Path, Error> {
    Ok(Path::parse(key).map_err(object_store::Error::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_named_that_keeps_a_client_from_being_made() {
        let s3 = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "geheim")];
        let azure = [("AZURE_STORAGE_ACCOUNT_NAME", "a"), ("AZURE_STORAGE_ACCOUNT_KEY", "Z2VoZWlt")];
        let gcs = [("GOOGLE_SKIP_SIGNATURE", "true")];
        for (url, others, name, value) in [
            ("s3://files", &s3[..], "AWS_ALLOW_HTTP", "yesplease"),
            ("s3://files", &s3, "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "path"),
            ("s3://files", &s3, "AWS_CHECKSUM_ALGORITHM", "MD5"),
            ("s3://files", &s3, "AWS_SERVER_SIDE_ENCRYPTION", "rot13"),
            ("s3://files", &[], "AWS_SECRET_ACCESS_KEY", "geheim"),
            ("az://files", &azure, "AZURE_ALLOW_HTTP", "yesplease"),
            ("az://files", &azure[..1], "AZURE_STORAGE_ACCOUNT_KEY", "geheim!"),
            ("gs://files", &gcs, "GOOGLE_ALLOW_HTTP", "yesplease"),
            ("gs://files", &gcs, "GOOGLE_SERVICE_ACCOUNT_KEY", "geheim"),
            ("gs://files", &gcs, "GOOGLE_APPLICATION_CREDENTIALS", "/none"),
        ] {
            let variables = others.iter().copied().chain([(name, value)]);
            let address = Address::read(url, variables).unwrap();
            let settings = Settings { address, part_bytes: 5 << 20, uploads: 2, stall: Duration::from_secs(1) };
            let wrong = crate::telemetry::chain(&Objects::new(settings).unwrap_err());
            assert!(wrong.contains(&format!(": {name}: ")), "{wrong}");
            assert!(!wrong.contains("geheim") && !wrong.contains('\n'), "{wrong}");
        }
    }
}
