//! Manifests in a bucket: objects whose keys have the number of the export in its lane.

use futures_util::TryStreamExt;
use object_store::{ObjectStore, PutMode};

use crate::failpoint;
use crate::job::ConsumerId;
use crate::manifest;
use crate::sink::bucket::Bucket;
use crate::sink::{Error, WrittenManifest};

impl Bucket {
    /// Writes a manifest, unless another one has its key.
    pub(super) async fn put_manifest(&self, key: &str, text: String) -> Result<WrittenManifest, Error> {
        failpoint!("sink.manifest", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        let key = self.objects.key(key);
        let put = self.objects.store.put_opts(&key, text.clone().into(), PutMode::Create.into()).await;
        failpoint!("sink.manifest.renamed", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        match put {
            Ok(_) => Ok(WrittenManifest::Done),
            // Written by an earlier call whose answer was lost, by another process, or before the database was
            // restored.
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                let found = self.objects.whole(&key, text.len() as u64).await?;
                let is_it = found.is_some_and(|found| found == text.as_bytes());
                Ok(if is_it { WrittenManifest::Done } else { WrittenManifest::Taken })
            }
            Err(error) => Err(self.objects.cannot("write", &key)(error)),
        }
    }

    /// Removes a manifest if it has this text.
    pub(super) async fn delete_manifest(&self, key: &str, text: &str) -> Result<(), Error> {
        let key = self.objects.key(key);
        let found = self.objects.whole(&key, text.len() as u64).await?;
        if found.is_some_and(|found| found == text.as_bytes()) {
            self.objects.delete(&key).await?;
        }
        Ok(())
    }

    /// Returns the largest number of a manifest of a lane, and 0 if there is none.
    pub(super) async fn last_number(&self, dataset: &str, consumer: &ConsumerId) -> Result<u64, Error> {
        let folder = self.objects.key(&manifest::folder(dataset, consumer));
        let mut found = self.objects.store.list(Some(&folder));
        let mut last = 0;
        while let Some(object) = found.try_next().await.map_err(self.objects.cannot("list", &folder))? {
            let number = Some(object.location.as_ref()).filter(|key| manifest::is_key(key));
            let number = number.and_then(|key| key.rsplit('/').next()?.strip_suffix(".json")?.parse().ok());
            last = last.max(number.unwrap_or(0));
        }
        Ok(last)
    }
}
