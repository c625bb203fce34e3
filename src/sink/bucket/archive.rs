//! A bucket that is read as it is found, by threads that wait for its answers.

use std::fmt;
use std::io::{self, Read};

use bytes::{Buf, Bytes};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore};
use tokio::runtime::Handle;

use crate::manifest;
use crate::sink::Error;
use crate::sink::bucket::Bucket;
use crate::sink::bucket::address::Client;
use crate::sink::bucket::failure::is_no_object;
use crate::sink::bucket::objects::path;
use crate::sink::found::Found;

/// How many names `{dataset}/{consumer}/_manifests/{number}.json` has.
const DEPTH: usize = 4;

/// A bucket, or what lies in it under a prefix.
#[derive(Debug)]
pub struct Shelf {
    bucket: Bucket,
    runtime: Handle,
}

impl Shelf {
    pub(in crate::sink) fn open(bucket: Bucket, runtime: Handle) -> Result<Shelf, Error> {
        let shelf = Shelf { bucket, runtime };
        match shelf.list().next() {
            Some(Err(error)) => Err(error),
            _ => Ok(shelf),
        }
    }

    /// The keys below the prefix.
    fn list(&self) -> impl Iterator<Item = Result<String, Error>> + use<> {
        let objects = &self.bucket.objects;
        let prefix = &objects.settings.address.prefix;
        let begin = if prefix.as_ref().is_empty() { String::new() } else { format!("{prefix}/") };
        let mut listed = objects.store.list(Some(prefix));
        let runtime = self.runtime.clone();
        std::iter::from_fn(move || {
            let found = runtime.block_on(listed.next())?;
            Some(match found {
                Ok(found) => Ok(found.location.as_ref().strip_prefix(&begin).unwrap_or_default().to_owned()),
                Err(error) => Err(error.into()),
            })
        })
    }

    pub(in crate::sink) fn manifests(&self) -> impl Iterator<Item = Result<String, Error>> + use<> {
        let is_manifest = |key: &String| manifest::is_key(key) && key.split('/').count() == DEPTH;
        self.list().filter(move |key| key.as_ref().map_or(true, is_manifest))
    }

    pub(in crate::sink) fn open_file(&self, name: &str) -> Result<Found<ObjectReader>, Error> {
        let objects = &self.bucket.objects;
        let prefix = &objects.settings.address.prefix;
        let key = if prefix.as_ref().is_empty() { path(name)? } else { path(&format!("{prefix}/{name}"))? };
        match self.runtime.block_on(objects.patient.get_opts(&key, GetOptions::default())) {
            Ok(found) => {
                let (bytes, etag) = (found.meta.size, found.meta.e_tag.clone());
                let body = found.into_stream().map_err(io::Error::other).boxed();
                let reader = ObjectReader {
                    client: objects.patient.clone(),
                    runtime: self.runtime.clone(),
                    key,
                    etag,
                    body,
                    rest: Bytes::new(),
                };
                Ok(Found::File(bytes, reader))
            }
            Err(error) if is_no_object(&error) => Ok(Found::Nothing),
            Err(error) => Err(error.into()),
        }
    }
}

/// An object whose bytes arrive.
// Parquet alone is read from its end.
#[cfg_attr(not(feature = "parquet"), expect(dead_code))]
pub struct ObjectReader {
    client: Client,
    runtime: Handle,
    key: Path,
    etag: Option<String>,
    body: BoxStream<'static, io::Result<Bytes>>,
    rest: Bytes,
}

impl fmt::Debug for ObjectReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ObjectReader").field(&self.key).finish()
    }
}

impl ObjectReader {
    /// The bytes from `from` on that fill the buffer, of the same object.
    #[cfg(feature = "parquet")]
    pub(in crate::sink) fn read_at(&self, buffer: &mut [u8], from: u64) -> io::Result<()> {
        let range = object_store::GetRange::Bounded(from..from + buffer.len() as u64);
        let options = GetOptions { range: Some(range), if_match: self.etag.clone(), ..GetOptions::default() };
        let read = async { self.client.get_opts(&self.key, options).await?.bytes().await };
        let bytes = self.runtime.block_on(read).map_err(io::Error::other)?;
        if bytes.len() != buffer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.copy_from_slice(&bytes);
        Ok(())
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.runtime.block_on(self.body.next()) {
                Some(bytes) => self.rest = bytes?,
                None => return Ok(0),
            }
        }
        let read = self.rest.len().min(buffer.len());
        self.rest.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}
