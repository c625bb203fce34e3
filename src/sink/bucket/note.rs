//! Notes: small objects that name uploads, under the hidden names of attempts. Not every store can list its uploads.

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

/// The folder of the notes, below the prefix.
const NOTES: &str = ".uploads";

/// An upload that is not completed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) key: String,
    /// The store's name for the upload; empty where it needs none.
    pub(super) upload: String,
}

impl Objects {
    /// Writes the note of an attempt's upload.
    pub(super) async fn leave(&self, hidden: &HiddenFile, note: &Note) -> Result<(), Error> {
        let text = serde_json::to_vec(note).map_err(std::io::Error::other)?;
        let key = self.note_key(&hidden.name);
        self.store.put(&key, Bytes::from(text).into()).await.map_err(self.cannot("write", &key))?;
        Ok(())
    }

    /// Removes a note.
    pub(super) async fn forget(&self, hidden_name: &str) -> Result<(), Error> {
        self.delete(&self.note_key(hidden_name)).await
    }

    /// Aborts an upload, so its parts are removed and an attempt that still runs can't add any. Does nothing if there
    /// is no such upload. Azure can't abort an upload, and removes its parts after a week.
    pub(super) async fn abort(&self, note: &Note) -> Result<(), Error> {
        match self.store.abort_multipart(&path(&note.key)?, &note.upload).await {
            Ok(()) => Ok(()),
            Err(error) if is_no_such_upload(&error) => Ok(()),
            Err(error) => Err(self.cannot("abort the upload of", &path(&note.key)?)(error)),
        }
    }

    fn note_key(&self, hidden_name: &str) -> Path {
        self.key(&format!("{NOTES}/{hidden_name}"))
    }
}

impl Bucket {
    /// Lists the hidden names of the notes, including those of running attempts and of other databases.
    pub(super) async fn notes(&self) -> Result<Vec<HiddenFile>, Error> {
        failpoint!("sink.sweep", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        let folder = self.objects.key(NOTES);
        let notes = self.objects.store.list(Some(&folder));
        let names = notes.map_ok(|object| object.location.filename().and_then(HiddenFile::read));
        let names = names.try_filter_map(async |hidden| Ok(hidden)).try_collect().await;
        names.map_err(self.objects.cannot("list", &folder))
    }

    /// Aborts the upload that a note names, and removes the note. Compares `unwritten_for` with the age of the note.
    pub(super) async fn sweep_note(&self, hidden: &HiddenFile, unwritten_for: Option<Duration>) -> Result<bool, Error> {
        let key = self.objects.note_key(&hidden.name);
        let Some(text) = self.objects.small(&key).await? else { return Ok(false) };
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
        if let Ok(note) = serde_json::from_slice::<Note>(&text) {
            self.objects.abort(&note).await?;
        }
        self.objects.forget(&hidden.name).await?;
        Ok(true)
    }
}
