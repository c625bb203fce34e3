//! Notes: small objects that name uploads, under the hidden names of attempts. Uploads themselves can't be listed by every store.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::failpoint;
use crate::file::hidden::HiddenFile;
use crate::sink::Error;
use crate::sink::bucket::Bucket;
use crate::sink::bucket::failure::is_no_such_upload;
use crate::sink::bucket::objects::{Objects, path};

/// Where the notes lie, below the prefix.
const NOTES: &str = ".uploads";

/// An upload that is not completed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Note {
    /// The object's key.
    pub(super) key: String,
    /// The store's name for the upload; empty where it needs none.
    pub(super) upload: String,
}

impl Objects {
    /// Leaves a note of an attempt's upload.
    pub(super) async fn leave(&self, hidden: &HiddenFile, note: &Note) -> Result<(), Error> {
        let text = serde_json::to_vec(note).map_err(std::io::Error::other)?;
        self.store.put(&self.note_key(&hidden.name), Bytes::from(text).into()).await?;
        Ok(())
    }

    /// Removes a note.
    pub(super) async fn forget(&self, hidden_name: &str) -> Result<(), Error> {
        self.delete(&self.note_key(hidden_name)).await
    }

    /// Aborts an upload: what was uploaded goes, and no attempt that still runs adds to it. One that isn't there is fine. Azure knows no
    /// aborting, and drops by itself what nobody completed within a week.
    pub(super) async fn abort(&self, note: &Note) -> Result<(), Error> {
        match self.store.abort_multipart(&path(&note.key)?, &note.upload).await {
            Ok(()) => Ok(()),
            Err(error) if is_no_such_upload(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn note_key(&self, hidden_name: &str) -> Path {
        self.key(&format!("{NOTES}/{hidden_name}"))
    }
}

impl Bucket {
    /// The attempts whose notes there are, live ones and those of other databases too.
    pub(in crate::sink) async fn hidden_files(&self) -> Result<Vec<HiddenFile>, Error> {
        failpoint!("sink.sweep", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        let notes = self.objects.store.list(Some(&self.objects.key(NOTES)));
        let names = notes.map_ok(|object| object.location.filename().and_then(HiddenFile::read));
        Ok(names.try_filter_map(async |hidden| Ok(hidden)).try_collect().await?)
    }

    /// Aborts the upload that a note names and removes the note; where `unwritten_for` is given, only of one that was left at least so long
    /// ago. True: it did.
    pub(in crate::sink) async fn sweep(
        &self,
        hidden: &HiddenFile,
        unwritten_for: Option<Duration>,
    ) -> Result<bool, Error> {
        let key = self.objects.note_key(&hidden.name);
        let Some(text) = self.objects.small(&key).await? else { return Ok(false) };
        if let Some(time) = unwritten_for {
            let age = match self.objects.store.head(&key).await {
                Ok(found) => chrono::Utc::now() - found.last_modified,
                Err(object_store::Error::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            if age.to_std().is_ok_and(|age| age < time) || age < chrono::TimeDelta::zero() {
                return Ok(false);
            }
        }
        // A note that can't be read names nothing that could be aborted.
        if let Ok(note) = serde_json::from_slice::<Note>(&text) {
            self.objects.abort(&note).await?;
        }
        self.objects.forget(&hidden.name).await?;
        Ok(true)
    }
}
