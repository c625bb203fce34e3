//! The [`Destination`] of a bucket.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::file::hidden::HiddenFile;
use crate::file::name::FileName;
use crate::file::{FileLocation, FileRecord, StagedFile};
use crate::job::JobId;
use crate::job::marker::Marker;
use crate::manifest::{self, Manifest};
use crate::sink::bucket::Bucket;
use crate::sink::{Destination, Draft, Error, MarkerFile, Prepared, Published, PublishedFile, WrittenManifest};

/// The limit on concurrent removals of one call.
const CONCURRENT_REMOVALS: usize = 8;

#[async_trait]
impl Destination for Bucket {
    async fn prepare(&self) -> Result<Prepared, Error> {
        self.prepare_bucket().await
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
        self.url_of(file)
    }

    async fn open(&self, file: &StagedFile, _name: &str) -> Result<Option<Box<dyn PublishedFile>>, Error> {
        let opened = self.open_object(file).await?;
        Ok(opened.map(|object| Box::new(object) as Box<dyn PublishedFile>))
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

    async fn discard_file(&self, file: &StagedFile, _name: &str) -> Result<(), Error> {
        self.remove_object(file).await
    }

    async fn hidden_files(&self) -> Result<Vec<HiddenFile>, Error> {
        self.notes().await
    }

    async fn sweep(&self, hidden: &HiddenFile, unwritten_for: Option<Duration>) -> Result<bool, Error> {
        self.sweep_note(hidden, unwritten_for).await
    }

    async fn lane_marker(&self, file: &MarkerFile) -> Result<Option<Marker>, Error> {
        self.read_marker(file).await
    }

    async fn lane_markers(&self, files: &[MarkerFile]) -> Result<Vec<Option<Marker>>, Error> {
        let markers = join_all(files.iter().map(|file| self.read_marker(file))).await;
        Ok(markers.into_iter().map(|marker| marker.unwrap_or(None)).collect())
    }

    async fn write_lane_marker(
        &self,
        file: &MarkerFile,
        marker: &Marker,
        replaced: Option<JobId>,
    ) -> Result<Option<Marker>, Error> {
        self.write_marker(file, marker, replaced).await
    }

    async fn write_manifest(&self, record: &FileRecord, number: u64, text: &str) -> Result<WrittenManifest, Error> {
        let Some(consumer) = &record.consumer else { return Ok(WrittenManifest::Done) };
        self.put_manifest(&manifest::key(&record.dataset, consumer, number), text.to_owned()).await
    }

    /// Returns false, because the key of a manifest has a number that is not known before the manifest is.
    async fn is_manifest_name_taken(&self, _record: &FileRecord, _text: &str) -> Result<bool, Error> {
        Ok(false)
    }

    async fn remove_manifest(&self, record: &FileRecord, text: &str) -> Result<(), Error> {
        let number = Manifest::read(text.as_bytes()).map_or(0, |manifest| manifest.number);
        let Some(consumer) = &record.consumer else { return Ok(()) };
        self.delete_manifest(&manifest::key(&record.dataset, consumer, number), text).await
    }

    async fn last_manifest(&self, record: &FileRecord) -> Result<u64, Error> {
        match &record.consumer {
            Some(consumer) => self.last_number(&record.dataset, consumer).await,
            None => Ok(0),
        }
    }
}
