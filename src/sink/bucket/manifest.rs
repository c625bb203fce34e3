//! Manifests in a bucket: each an object of its own, whose key has the export's number in its lane.

use futures_util::TryStreamExt;
use object_store::{ObjectStore, PutMode};

use crate::failpoint;
use crate::job::ConsumerId;
use crate::manifest;
use crate::sink::Error;
use crate::sink::bucket::Bucket;
use crate::sink::manifests::WrittenManifest;

impl Bucket {
    /// Puts a manifest there, unless another one has its key.
    pub(in crate::sink) async fn write_manifest(&self, key: &str, text: String) -> Result<WrittenManifest, Error> {
        failpoint!("sink.manifest", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        let key = self.objects.key(key);
        let put = self.objects.store.put_opts(&key, text.clone().into(), PutMode::Create.into()).await;
        failpoint!("sink.manifest.renamed", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        match put {
            Ok(_) => Ok(WrittenManifest::Done),
            // By an earlier call whose answer was lost, another process, or before the database was put back.
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                let found = self.objects.whole(&key, text.len() as u64).await?;
                let is_it = found.is_some_and(|found| found == text.as_bytes());
                Ok(if is_it { WrittenManifest::Done } else { WrittenManifest::Taken })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a manifest, if this is the one that stands there.
    pub(in crate::sink) async fn remove_manifest(&self, key: &str, text: &str) -> Result<(), Error> {
        let key = self.objects.key(key);
        let found = self.objects.whole(&key, text.len() as u64).await?;
        if found.is_some_and(|found| found == text.as_bytes()) {
            self.objects.delete(&key).await?;
        }
        Ok(())
    }

    /// The largest number of a lane's manifests; 0 if there is none.
    pub(in crate::sink) async fn last_manifest(&self, dataset: &str, consumer: &ConsumerId) -> Result<u64, Error> {
        let mut found = self.objects.store.list(Some(&self.objects.key(&manifest::folder(dataset, consumer))));
        let mut last = 0;
        while let Some(object) = found.try_next().await? {
            let number = Some(object.location.as_ref()).filter(|key| manifest::is_key(key));
            let number = number.and_then(|key| key.rsplit('/').next()?.strip_suffix(".json")?.parse().ok());
            last = last.max(number.unwrap_or(0));
        }
        Ok(last)
    }
}
