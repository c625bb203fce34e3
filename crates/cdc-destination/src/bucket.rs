//! A bucket of S3, GCS or Azure Blob as a destination. A file is uploaded in parts to its final key while its rows
//! stream. The key appears when the upload is completed, after the commit: the completion is this destination's rename.
//!
//! Each attempt has a key of its own, so no attempt writes to another's, and no answer of a store requires to read the
//! rows again. Beside each upload is a note under a hidden name, so that the sweep finds an abandoned upload as it
//! finds a hidden file in a folder.

mod address;
pub(super) mod archive;
mod connector;
mod destination;
mod draft;
mod failure;
mod note;
mod objects;

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bucket::draft::Upload;
use crate::bucket::failure::{is_no_object, is_no_such_upload};
use crate::bucket::objects::{Objects, SMALL_BYTES, path};
use crate::{
    DESTINATION_ID_FILE, Error, FileLocation, FileName, HiddenFile, Prepared, Published, PublishedFile, StagedFile,
};
use failpoint::failpoint;

pub use address::BucketAddress;
pub use objects::Settings;

/// The time for which the id of the bucket is not read again.
const ID_BELIEVED_FOR: Duration = Duration::from_secs(60);

/// The timeout of a completion. A store takes minutes for a large file, and may send a byte now and then for ever.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(600);

/// The metadata of an object that says which attempt made it.
const ATTEMPT: &str = "cdc-export-attempt";

/// A bucket, or the part of it below a prefix. Each function does what the [`Destination`](super::Destination)'s
/// function does.
#[derive(Debug)]
pub(super) struct Bucket {
    objects: Arc<Objects>,
    id: Mutex<Option<(Uuid, Instant)>>,
}

impl Bucket {
    pub(super) fn new(settings: Settings) -> Result<Bucket, Error> {
        Ok(Bucket { objects: Arc::new(Objects::new(settings)?), id: Mutex::default() })
    }

    async fn make_id(&self) -> Result<Prepared, Error> {
        // If two processes start at once, one writes the id and both read it.
        self.objects.put(&self.objects.key(DESTINATION_ID_FILE), &format!("{}\n", Uuid::new_v4()), None).await?;
        Ok(Prepared::New)
    }

    /// Checks that an object can be written and removed. The object always has the same name, so the next start removes
    /// one that a process left behind.
    async fn probe(&self) -> Result<(), Error> {
        let key = self.objects.key(&format!("{DESTINATION_ID_FILE}.probe"));
        self.objects.store.put(&key, "".into()).await.map_err(self.objects.cannot("write", &key))?;
        failpoint!("start.probed");
        self.objects.delete(&key).await
    }

    /// Returns the bucket's id, which is in a small object. Reads it once a minute.
    async fn recent_id(&self) -> Result<Uuid, Error> {
        let known = *self.known_id();
        match known {
            Some((id, asked)) if asked.elapsed() < ID_BELIEVED_FOR => Ok(id),
            _ => self.fresh_id().await,
        }
    }

    async fn fresh_id(&self) -> Result<Uuid, Error> {
        let found = self.read_id().await?;
        let mut known = self.known_id();
        let found = match (found, *known) {
            (Some(found), Some((before, _))) if found != before => {
                return Err(Error::Replaced("is another one's"));
            }
            (Some(found), _) => found,
            (None, None) => return Err(Error::Unused),
            (None, Some(_)) => return Err(Error::Replaced("is gone")),
        };
        *known = Some((found, Instant::now()));
        Ok(found)
    }

    fn known_id(&self) -> std::sync::MutexGuard<'_, Option<(Uuid, Instant)>> {
        self.id.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn read_id(&self) -> Result<Option<Uuid>, Error> {
        let key = self.objects.key(DESTINATION_ID_FILE);
        let Some(found) = self.objects.read(&key, SMALL_BYTES).await? else { return Ok(None) };
        let no_id = || Error::Io(std::io::Error::other(format!("{DESTINATION_ID_FILE} holds no id")));
        found.id().map(Some).ok_or_else(no_id)
    }

    async fn begin_upload(
        &self,
        hidden: &HiddenFile,
        name: &FileName,
        stopped: CancellationToken,
    ) -> Result<Upload, Error> {
        let id = self.recent_id().await?;
        let (objects, key) = (Arc::clone(&self.objects), self.objects.key(&name.key(hidden)));
        let (attributes, hidden) = (self.attributes(hidden, name), hidden.clone());
        let begin = async move {
            let upload = objects.store.create_multipart_opts(&key, attributes).await;
            let upload = upload.map_err(objects.cannot("begin the upload of", &key))?;
            failpoint!("bucket.created");
            let note = note::Note { key: key.to_string(), upload };
            if let Err(error) = objects.leave(&hidden, &note).await {
                // Without its note, no sweep finds the upload.
                let _ = objects.store.abort_multipart(&key, &note.upload).await;
                return Err(error);
            }
            Ok(Upload::new(objects, id, hidden.name, note, stopped))
        };
        // A task of its own leaves the note even if the attempt ends meanwhile, for example by a cancellation.
        tokio::spawn(begin).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Completes a committed file's upload. Fails if the bucket's answer proves nothing.
    async fn complete_upload(&self, file: &StagedFile) -> Result<Published, Error> {
        self.require(file).await?;
        let (key, etag) = match &file.identity.location {
            FileLocation::Object { .. } => return Ok(Published::Done(file.identity.location.clone())),
            FileLocation::Upload { key, upload, parts } => {
                let path = path(key)?;
                let parts = parts.iter().map(|content_id| PartId { content_id: content_id.clone() }).collect();
                let completion = self.objects.patient.complete_multipart(&path, upload, parts);
                let completed = tokio::time::timeout(COMPLETION_TIMEOUT, completion).await.unwrap_or_else(|elapsed| {
                    Err(object_store::Error::Generic { store: "bucket", source: elapsed.into() })
                });
                failpoint!("bucket.completed", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
                // Neither answer proves anything. After an error, the upload may be completed: by another process, or
                // by a request whose answer was lost. Some stores report a success again for a completed upload whose
                // object was removed.
                match (self.object(file, key, None).await?, completed) {
                    (Some(etag), _) => (key, etag),
                    (None, Ok(_)) => return Ok(Published::Gone),
                    (None, Err(error)) if is_no_such_upload(&error) => return Ok(Published::Gone),
                    (None, Err(error)) => return Err(self.objects.cannot("complete the upload of", &path)(error)),
                }
            }
            FileLocation::Folder { .. } => return Err(Error::Elsewhere),
        };
        self.objects.forget(&file.name).await?;
        failpoint!("bucket.forgotten", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        Ok(Published::Done(FileLocation::Object { key: key.clone(), etag }))
    }

    /// Returns the tag of an attempt's object, or `None` if there is no object or another one.
    async fn object(&self, file: &StagedFile, key: &str, etag: Option<&str>) -> Result<Option<Option<String>>, Error> {
        let options = GetOptions { head: true, if_match: etag.map(str::to_owned), ..GetOptions::default() };
        let found = match self.objects.store.get_opts(&path(key)?, options).await {
            Ok(found) => found,
            Err(object_store::Error::Precondition { .. }) => return Ok(None),
            Err(object_store::Error::NotFound { .. }) => {
                // A proxy may answer so, without a body.
                return match self.objects.lacks(&path(key)?).await? {
                    true => Ok(None),
                    false => {
                        Err(Error::Unavailable(std::io::Error::other("it says that an object is missing, and has it")))
                    }
                };
            }
            Err(error) => return Err(self.objects.cannot("look up", &path(key)?)(error)),
        };
        let attempt = found.attributes.get(&object_store::Attribute::Metadata(ATTEMPT.into()));
        let is_attempts = self.objects.settings.address.is_azure()
            || attempt.is_some_and(|value| AsRef::<str>::as_ref(value) == file.name);
        Ok((is_attempts && found.meta.size == file.identity.bytes).then_some(found.meta.e_tag))
    }

    /// Removes a published file if it is still the recorded one, and aborts the upload of a file that isn't published.
    async fn remove_object(&self, file: &StagedFile) -> Result<(), Error> {
        self.require(file).await?;
        let (key, etag) = match &file.identity.location {
            FileLocation::Object { key, etag } => (key, etag.as_deref()),
            FileLocation::Upload { key, upload, .. } => {
                self.objects.abort(&note::Note { key: key.clone(), upload: upload.clone() }).await?;
                self.objects.forget(&file.name).await?;
                (key, None)
            }
            FileLocation::Folder { .. } => return Err(Error::Elsewhere),
        };
        if self.object(file, key, etag).await?.is_some() {
            self.objects.delete(&path(key)?).await?;
        }
        Ok(())
    }

    async fn require(&self, file: &StagedFile) -> Result<(), Error> {
        if self.recent_id().await? == file.destination { Ok(()) } else { Err(Error::Elsewhere) }
    }

    fn attributes(&self, hidden: &HiddenFile, name: &FileName) -> object_store::PutMultipartOptions {
        let mut attributes = object_store::Attributes::new();
        // An upload to Azure can't give its object metadata.
        if !self.objects.settings.address.is_azure() {
            let disposition = format!("attachment; filename=\"{}\"", name.of_part(hidden.part));
            attributes.insert(object_store::Attribute::ContentType, name.encoding.media_type().into());
            attributes.insert(object_store::Attribute::ContentDisposition, disposition.into());
            attributes.insert(object_store::Attribute::Metadata(ATTEMPT.into()), hidden.name.clone().into());
        }
        object_store::PutMultipartOptions { attributes, ..Default::default() }
    }
}

#[derive(Debug)]
struct Object {
    objects: Arc<Objects>,
    key: Path,
    etag: Option<String>,
}

#[async_trait]
impl PublishedFile for Object {
    async fn url(&self, lifetime: Duration) -> Result<Option<String>, Error> {
        let Object { objects, key, .. } = self;
        let signed = objects.store.signed_url(reqwest::Method::GET, key, lifetime).await;
        Ok(Some(signed.map_err(objects.cannot("sign the URL of", key))?.into()))
    }

    async fn part(self: Box<Self>, from: u64, length: u64) -> Result<Pin<Box<dyn AsyncRead + Send>>, Error> {
        let Object { objects, key, etag } = *self;
        let range = Some(GetRange::Bounded(from..from + length)).filter(|_| length > 0);
        let options = GetOptions { range, if_match: etag, ..GetOptions::default() };
        let found = match objects.patient.get_opts(&key, options).await {
            Err(object_store::Error::Precondition { .. }) => return Err(Error::Gone),
            Err(error) if is_no_object(&error) => return Err(Error::Gone),
            found => found.map_err(objects.cannot("read", &key))?,
        };
        Ok(Box::pin(StreamReader::new(found.into_stream().map_err(std::io::Error::other))))
    }
}
