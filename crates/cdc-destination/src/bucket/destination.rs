//! The [`Destination`] of a bucket. Markers of lanes are objects beside the files. The keys of manifests have the
//! number of the export in its lane.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bucket::note::{NOTES, Note};
use crate::bucket::objects::{SMALL_BYTES, path};
use crate::bucket::{Bucket, Object};
use crate::{
    Destination, Draft, Error, ExportFiles, FileLocation, FileName, HiddenFile, Marker, MarkerFile, Prepared,
    Published, PublishedFile, SmallFile, StagedFile,
};
use cdc_manifest::Manifest;

use failpoint::failpoint;

const CONCURRENT_REMOVALS: usize = 8;

#[async_trait]
impl Destination for Bucket {
    async fn prepare(&self) -> Result<Prepared, Error> {
        let prepared = if self.read_id().await?.is_some() { Prepared::Known } else { self.make_id().await? };
        self.fresh_id().await?;
        self.probe().await?;
        Ok(prepared)
    }

    async fn id(&self) -> Result<Uuid, Error> {
        self.recent_id().await
    }

    async fn require_room(&self) -> Result<(), Error> {
        self.fresh_id().await.map(drop)
    }

    async fn create(
        &self,
        hidden: &HiddenFile,
        name: &FileName,
        stopped: &CancellationToken,
    ) -> Result<Box<dyn Draft>, Error> {
        Ok(Box::new(self.begin_upload(hidden, name, stopped.clone()).await?))
    }

    /// Leaves the name aside: the key of an upload never changes.
    async fn publish(&self, file: &StagedFile, _name: &str) -> Result<Published, Error> {
        self.complete_upload(file).await
    }

    async fn rename(&self, file: &StagedFile, _name: &str) -> Result<Published, Error> {
        self.complete_upload(file).await
    }

    fn location(&self, file: &FileLocation, _name: &str) -> Option<String> {
        match file {
            FileLocation::Object { key, .. } | FileLocation::Upload { key, .. } => {
                Some(self.objects.settings.address.url(key))
            }
            FileLocation::Folder { .. } => None,
        }
    }

    async fn open(&self, file: &StagedFile, _name: &str) -> Result<Option<Box<dyn PublishedFile>>, Error> {
        self.require(file).await?;
        let FileLocation::Object { key, etag } = &file.identity.location else { return Ok(None) };
        let Some(etag) = self.object(file, key, etag.as_deref()).await? else { return Ok(None) };
        Ok(Some(Box::new(Object { objects: Arc::clone(&self.objects), key: path(key)?, etag })))
    }

    async fn remove(&self, files: &[(String, StagedFile)]) -> Result<(), Error> {
        let mut outcome = Ok(());
        for some in files.chunks(CONCURRENT_REMOVALS) {
            let removals = some.iter().map(|(_, file)| self.remove_object(file));
            // A file that can't be removed must not keep the others.
            outcome = join_all(removals).await.into_iter().fold(outcome, Result::and);
        }
        outcome
    }

    async fn hidden_files(&self) -> Result<Vec<HiddenFile>, Error> {
        failpoint!("sink.sweep", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        let folder = self.objects.key(NOTES);
        let notes = self.objects.store.list(Some(&folder));
        let names = notes.map_ok(|object| object.location.filename().and_then(HiddenFile::read));
        let names = names.try_filter_map(async |hidden| Ok(hidden)).try_collect().await;
        names.map_err(self.objects.cannot("list", &folder))
    }

    /// Aborts the upload that a note names, and removes the note. Compares `unwritten_for` with the age of the note.
    async fn sweep(&self, hidden: &HiddenFile, unwritten_for: Option<Duration>) -> Result<bool, Error> {
        let key = self.objects.note_key(&hidden.name);
        let Some(SmallFile { text, .. }) = self.objects.read(&key, SMALL_BYTES).await? else { return Ok(false) };
        if let Some(time) = unwritten_for {
            let age = match self.objects.store.head(&key).await {
                Ok(found) => chrono::Utc::now() - found.last_modified,
                Err(object_store::Error::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(self.objects.cannot("look up", &key)(error)),
            };
            if age.to_std().is_ok_and(|age| age < time) || age < chrono::TimeDelta::zero() {
                return Ok(false);
            }
        }
        // A damaged note names no upload to abort.
        if let Some(note) = text.and_then(|text| serde_json::from_slice::<Note>(&text).ok()) {
            self.objects.abort(&note).await?;
        }
        self.objects.forget(&hidden.name).await?;
        Ok(true)
    }

    async fn read_small(&self, name: &str, most: u64) -> Result<Option<SmallFile>, Error> {
        self.objects.read(&self.objects.key(name), most).await
    }

    async fn put_small(&self, _draft: &str, name: &str, text: &str, before: Option<&SmallFile>) -> Result<bool, Error> {
        if before.is_some_and(|before| before.has(text)) {
            return Ok(true);
        }
        self.objects.put(&self.objects.key(name), text, before).await
    }

    async fn remove_small(&self, name: &str) -> Result<(), Error> {
        self.objects.delete(&self.objects.key(name)).await
    }

    fn numbers_manifests(&self) -> bool {
        true
    }

    async fn lane_markers(&self, files: &[MarkerFile]) -> Result<Vec<Option<Marker>>, Error> {
        let markers = join_all(files.iter().map(|file| self.lane_marker(file))).await;
        Ok(markers.into_iter().map(|marker| marker.unwrap_or(None)).collect())
    }

    async fn last_manifest(&self, record: &ExportFiles) -> Result<u64, Error> {
        let Some(consumer) = &record.consumer else { return Ok(0) };
        let folder = self.objects.key(&Manifest::folder(&record.dataset, consumer));
        let mut found = self.objects.store.list(Some(&folder));
        let mut last = 0;
        while let Some(object) = found.try_next().await.map_err(self.objects.cannot("list", &folder))? {
            let number = Some(object.location.as_ref()).filter(|key| Manifest::is_key(key));
            let number = number.and_then(|key| key.rsplit('/').next()?.strip_suffix(".json")?.parse().ok());
            last = last.max(number.unwrap_or(0));
        }
        Ok(last)
    }
}
