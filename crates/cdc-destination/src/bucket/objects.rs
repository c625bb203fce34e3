//! The objects of a bucket below its prefix, and the clients that reach them.

use std::fmt;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, GetResult, ObjectStoreExt, PutMode, UpdateVersion};

use crate::bucket::address::{BucketAddress, Client};
use crate::bucket::connector::Connector;
use crate::bucket::failure::{cannot, cause, is_no_object};
use crate::{Error, SmallFile, stall_limit};

const SMALL_TIMEOUT: Duration = Duration::from_secs(15);
/// The timeout of the request for a part, unless the part is large.
const PART_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest silence of a store while it completes an upload or sends an object.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) const UPLOADS: usize = 2;

pub(super) const SMALL_BYTES: u64 = 64 << 10;

#[derive(Clone, Debug)]
pub struct Settings {
    pub address: BucketAddress,
    pub part_bytes: usize,
}

pub(super) struct Objects {
    pub(super) settings: Settings,
    pub(super) store: Client,
    pub(super) parts: Client,
    /// The client for requests that may take minutes: completions, and the bodies of objects.
    pub(super) patient: Client,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Objects").field(&self.settings.address).finish()
    }
}

impl Objects {
    pub(super) fn new(settings: Settings) -> Result<Objects, Error> {
        let Settings { address, part_bytes } = &settings;
        // The time that the parts of one file take together, on a line of 1 Mbit/s.
        let slow = Duration::from_secs((part_bytes * UPLOADS) as u64 / (128 << 10));
        let hasty = ClientOptions::new().with_timeout(SMALL_TIMEOUT);
        let parts = ClientOptions::new().with_timeout(PART_TIMEOUT.max(slow).min(stall_limit().max(SMALL_TIMEOUT)));
        let patient = ClientOptions::new().with_timeout_disabled().with_read_timeout(SILENCE_TIMEOUT);
        let client = |options, connector| address.client(options, connector).map_err(|error| wrong(address, &error));
        let (store, parts) = (client(hasty, Connector::Small)?, client(parts, Connector::Small)?);
        let patient = client(patient, Connector::Objects)?;
        Ok(Objects { settings, store, parts, patient })
    }

    /// Returns the key of a name below the prefix.
    pub(super) fn key(&self, name: &str) -> Path {
        Path::from_iter(self.settings.address.prefix.parts().chain(Path::from(name).parts()))
    }

    /// Returns a function that converts the error of a failed operation on an object.
    pub(super) fn cannot(&self, verb: &'static str, key: &Path) -> impl FnOnce(object_store::Error) -> Error + use<> {
        cannot(verb, self.settings.address.url(key.as_ref()))
    }

    /// Returns true if the store says by its own code that there is no object. An answer without a body has no code.
    pub(super) async fn lacks(&self, key: &Path) -> Result<bool, Error> {
        let options = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
        match self.store.get_opts(key, options).await {
            Ok(_) => Ok(false),
            Err(error) if is_no_object(&error) => Ok(true),
            Err(error) => Err(self.cannot("look up", key)(error)),
        }
    }

    /// Removes an object. Does nothing if there is none, because another process may have removed it.
    pub(super) async fn delete(&self, key: &Path) -> Result<(), Error> {
        let error = match self.store.delete(key).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // Azure's client sends deletions in a batch. The answers to a batch don't have the store's own codes.
        let is_of_a_batch = matches!(error, object_store::Error::NotFound { .. });
        if is_no_object(&error) || (is_of_a_batch && self.lacks(key).await?) {
            Ok(())
        } else {
            Err(self.cannot("remove", key)(error))
        }
    }

    /// Reads an object, without its text if that has more than `most` bytes. A conditional PUT replaces its version.
    pub(super) async fn read(&self, key: &Path, most: u64) -> Result<Option<SmallFile>, Error> {
        let found = match self.store.get_opts(key, GetOptions::default()).await {
            Ok(found) => found,
            Err(error) if is_no_object(&error) => return Ok(None),
            Err(error) => return Err(self.cannot("read", key)(error)),
        };
        let (e_tag, version) = (found.meta.e_tag.clone(), found.meta.version.clone());
        // Anybody who may write to the bucket can put a large object there.
        let text = up_to(found, most).await.map_err(self.cannot("read", key))?;
        Ok(Some(SmallFile { text, e_tag, version }))
    }

    /// Writes an object if the key has what was read before, or nothing. Returns false if it has something else.
    pub(super) async fn put(&self, key: &Path, text: &str, before: Option<&SmallFile>) -> Result<bool, Error> {
        let mode = match before {
            None => PutMode::Create,
            Some(SmallFile { e_tag, version, .. }) => {
                PutMode::Update(UpdateVersion { e_tag: e_tag.clone(), version: version.clone() })
            }
        };
        match self.store.put_opts(key, text.to_owned().into(), mode.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(self.cannot("write", key)(error)),
        }
    }
}

/// Returns the content of an answer, or `None` if it has more than `most` bytes. The store announces the size of an
/// object, and may send another one.
async fn up_to(found: GetResult, most: u64) -> object_store::Result<Option<Vec<u8>>> {
    if found.range.end - found.range.start > most {
        return Ok(None);
    }
    let (mut content, mut pieces) = (Vec::new(), found.into_stream());
    while let Some(piece) = pieces.try_next().await? {
        if (content.len() + piece.len()) as u64 > most {
            return Ok(None);
        }
        content.extend_from_slice(&piece);
    }
    Ok(Some(content))
}

/// Returns the error for settings from which no client can be made, with the variable to blame. The client's own
/// message lacks it.
fn wrong(address: &BucketAddress, error: &object_store::Error) -> Error {
    let cause = cause(error);
    Error::Settings(std::io::Error::other(match address.culprit() {
        Some(variable) => format!("{variable}: {cause}"),
        None => cause,
    }))
}

/// Parses a key that was made by [`Objects::key`].
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
            let address = BucketAddress::read(url, variables).unwrap();
            let wrong =
                pg_session::failure::chain(&Objects::new(Settings { address, part_bytes: 5 << 20 }).unwrap_err());
            assert!(wrong.contains(&format!(": {name}: ")), "{wrong}");
            assert!(!wrong.contains("geheim") && !wrong.contains('\n'), "{wrong}");
        }
    }
}
