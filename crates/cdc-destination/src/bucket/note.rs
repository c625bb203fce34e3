//! Notes: small objects that name uploads, under the hidden names of attempts. Not every store can list its uploads.

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::bucket::failure::is_no_such_upload;
use crate::bucket::objects::{Objects, path};
use crate::{Error, HiddenFile};

/// The folder of the notes, below the prefix.
pub(super) const NOTES: &str = ".uploads";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) key: String,
    /// The store's name for the upload; empty where it needs none.
    pub(super) upload: String,
}

impl Objects {
    pub(super) async fn leave(&self, hidden: &HiddenFile, note: &Note) -> Result<(), Error> {
        let text = serde_json::to_vec(note).map_err(std::io::Error::other)?;
        let key = self.note_key(&hidden.name);
        self.store.put(&key, Bytes::from(text).into()).await.map_err(self.cannot("write", &key))?;
        Ok(())
    }

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

    pub(super) fn note_key(&self, hidden_name: &str) -> Path {
        self.key(&format!("{NOTES}/{hidden_name}"))
    }
}
