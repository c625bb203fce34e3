//! A bucket as an [`Archive`], read by threads that wait for the answers.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::{GetOptions, ObjectStore};
use tokio::runtime::Handle;

use crate::bucket::Bucket;
use crate::bucket::failure::is_no_object;
use crate::bucket::objects::path;
use crate::{Archive, Error, Lookup};
use cdc_manifest::Manifest;

/// The number of names in `{dataset}/{consumer}/_manifests/{number}.json`.
const DEPTH: usize = 4;

/// A bucket, or the part of it below a prefix, that is open for reading.
#[derive(Debug)]
pub(crate) struct BucketArchive {
    bucket: Bucket,
    runtime: Handle,
}

impl BucketArchive {
    /// Opens the bucket, if it can be listed. `runtime` runs the requests.
    pub(crate) fn open(bucket: Bucket, runtime: Handle) -> Result<BucketArchive, Error> {
        let archive = BucketArchive { bucket, runtime };
        match archive.list().next() {
            Some(Err(error)) => Err(error),
            _ => Ok(archive),
        }
    }

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
}

impl Archive for BucketArchive {
    /// Checks nothing, because the store's answer to each request says if the bucket can't be read.
    fn require(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Returns at least 16, because each reader waits for its answer most of the time.
    fn readers(&self, cores: usize) -> usize {
        cores.max(16)
    }

    fn failure(&self, error: io::Error) -> Error {
        Error::Unavailable(error)
    }

    fn manifests(&self) -> Result<Box<dyn Iterator<Item = Result<String, Error>> + '_>, Error> {
        let is_manifest = |key: &String| Manifest::is_key(key) && key.split('/').count() == DEPTH;
        Ok(Box::new(self.list().filter(move |key| key.as_ref().map_or(true, is_manifest))))
    }

    fn leads_to(&self, url: &str, name: &str) -> bool {
        self.bucket.objects.settings.address.is_url_of(url, name)
    }

    fn open_file(&self, name: &str) -> Result<Lookup<Box<dyn Read + Send>>, Error> {
        let objects = &self.bucket.objects;
        let prefix = &objects.settings.address.prefix;
        let key = if prefix.as_ref().is_empty() { path(name)? } else { path(&format!("{prefix}/{name}"))? };
        match self.runtime.block_on(objects.patient.get_opts(&key, GetOptions::default())) {
            Ok(found) => {
                let bytes = found.meta.size;
                let body = found.into_stream().map_err(io::Error::other).boxed();
                let reader = ObjectReader { runtime: self.runtime.clone(), body, rest: Bytes::new() };
                Ok(Lookup::File(bytes, Box::new(reader)))
            }
            Err(error) if is_no_object(&error) => Ok(Lookup::Nothing),
            Err(error) => Err(error.into()),
        }
    }
}

struct ObjectReader {
    runtime: Handle,
    body: BoxStream<'static, io::Result<Bytes>>,
    rest: Bytes,
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
