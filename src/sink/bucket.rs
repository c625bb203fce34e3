//! A bucket of S3, GCS or Azure Blob as a destination. A file is uploaded in parts to its final key while its rows stream, and the key
//! appears when the upload is completed, which is done after the commit: the completion is this destination's rename.
//!
//! Each attempt has a key of its own, so nobody ever writes to another's, and no answer of a store can mean that the rows have to be
//! read again. Beside each upload lies a note under a hidden name, so that what an attempt left is found as it is in a folder.

mod address;
pub(super) mod archive;
mod draft;
mod failure;
mod manifest;
mod marker;
mod note;
mod objects;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::failpoint;
use crate::file::hidden::HiddenFile;
use crate::file::name::FileName;
use crate::file::{FileLocation, StagedFile};
use crate::sink::bucket::draft::Upload;
use crate::sink::bucket::failure::{is_no_object, is_no_such_upload};
use crate::sink::bucket::objects::{Objects, path};
use crate::sink::{Error, MARK, Prepared, Published};

pub use address::{Address, BadAddress};
pub use objects::Settings;

/// How long the bucket's id is believed without asking for it again.
const ID_BELIEVED_FOR: Duration = Duration::from_secs(60);

/// The metadata of an object that says which attempt made it.
const ATTEMPT: &str = "cdc-export-attempt";

/// A bucket, or what lies in it under a prefix. What a call does and returns is said at the [`Destination`](super::Destination)'s.
///
/// # Errors
/// Every call fails if the bucket doesn't answer or refuses, or has no mark or another one than before.
#[derive(Debug)]
pub struct Bucket {
    objects: Arc<Objects>,
    id: Mutex<Option<(Uuid, Instant)>>,
}

impl Bucket {
    /// The bucket of these settings; asks nobody yet.
    ///
    /// # Errors
    /// If the variables for its cloud are wrong.
    pub fn new(settings: Settings) -> Result<Bucket, Error> {
        Ok(Bucket { objects: Arc::new(Objects::new(settings)?), id: Mutex::default() })
    }

    /// Gives the bucket its mark, where it has none, and requires that objects can be written.
    pub async fn prepare(&self) -> Result<Prepared, Error> {
        let prepared = if self.read_id().await?.is_some() { Prepared::Known } else { self.make_mark().await? };
        self.fresh_id().await?;
        self.probe().await?;
        Ok(prepared)
    }

    async fn make_mark(&self) -> Result<Prepared, Error> {
        let text = format!("{}\n", Uuid::new_v4());
        match self.objects.store.put_opts(&self.objects.key(MARK), text.into(), PutMode::Create.into()).await {
            // Of two processes that start at once one makes it, and both read it.
            Ok(_) | Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(Prepared::New)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Requires that an object can be made and removed. It has one name for all, so that the next start removes what a process left that
    /// died in between.
    async fn probe(&self) -> Result<(), Error> {
        let key = self.objects.key(&format!("{MARK}.probe"));
        self.objects.store.put(&key, "".into()).await?;
        failpoint!("start.probed");
        self.objects.delete(&key).await
    }

    /// The bucket's id, which is kept in a small object, its mark. Asked for once a minute.
    pub async fn id(&self) -> Result<Uuid, Error> {
        let known = *self.known_id();
        match known {
            Some((id, asked)) if asked.elapsed() < ID_BELIEVED_FOR => Ok(id),
            _ => self.fresh_id().await,
        }
    }

    /// The bucket's id as it is now.
    pub async fn fresh_id(&self) -> Result<Uuid, Error> {
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
        let Some(text) = self.objects.small(&self.objects.key(MARK)).await? else { return Ok(None) };
        let id = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        id.map(Some).ok_or_else(|| Error::Io(std::io::Error::other(format!("{MARK} holds no id"))))
    }

    /// Begins an attempt's upload.
    pub(super) async fn create(
        &self,
        hidden: &HiddenFile,
        name: &FileName,
        stopped: CancellationToken,
    ) -> Result<Upload, Error> {
        let id = self.id().await?;
        let key = self.objects.key(&name.key(hidden));
        let upload = self.objects.store.create_multipart_opts(&key, self.attributes(hidden, name)).await?;
        failpoint!("bucket.created");
        let note = note::Note { key: key.to_string(), upload };
        if let Err(error) = self.objects.leave(hidden, &note).await {
            // Without its note nobody would find it again.
            let _ = self.objects.store.abort_multipart(&key, &note.upload).await;
            return Err(error);
        }
        Ok(Upload::new(Arc::clone(&self.objects), id, hidden.name.clone(), note, stopped))
    }

    /// Completes a committed file's upload.
    ///
    /// # Errors
    /// If the bucket's answer proves nothing.
    pub async fn publish(&self, file: &StagedFile) -> Result<Published, Error> {
        self.require(file).await?;
        let (key, etag) = match &file.identity.location {
            FileLocation::Object { .. } => return Ok(Published::Done(file.identity.location.clone())),
            FileLocation::Upload { key, upload, parts } => {
                let path = path(key)?;
                let parts = parts.iter().map(|content_id| PartId { content_id: content_id.clone() }).collect();
                let completed = self.objects.patient.complete_multipart(&path, upload, parts).await;
                failpoint!("bucket.completed", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
                // Neither answer proves anything. An error: another process may have completed it, or this one, whose answer was lost. A
                // success: some stores say so again of an upload that was completed, and whose object somebody removed.
                match (self.object(file, key, None).await?, completed) {
                    (Some(etag), _) => (key, etag),
                    (None, Ok(_)) => return Ok(Published::Gone),
                    (None, Err(error)) if is_no_such_upload(&error) => return Ok(Published::Gone),
                    (None, Err(error)) => return Err(error.into()),
                }
            }
            FileLocation::Folder { .. } => return Err(Error::Elsewhere),
        };
        self.objects.forget(&file.name).await?;
        failpoint!("bucket.forgotten", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        Ok(Published::Done(FileLocation::Object { key: key.clone(), etag }))
    }

    /// Where a file is once it is published, as a URL.
    pub fn location(&self, file: &FileLocation) -> Option<String> {
        match file {
            FileLocation::Object { key, .. } | FileLocation::Upload { key, .. } => {
                Some(self.objects.settings.address.url(key))
            }
            FileLocation::Folder { .. } => None,
        }
    }

    /// The tag of an attempt's object; `None`: there is no object, or another one.
    async fn object(&self, file: &StagedFile, key: &str, etag: Option<&str>) -> Result<Option<Option<String>>, Error> {
        let options = GetOptions { head: true, if_match: etag.map(str::to_owned), ..GetOptions::default() };
        let found = match self.objects.store.get_opts(&path(key)?, options).await {
            Ok(found) => found,
            Err(object_store::Error::Precondition { .. }) => return Ok(None),
            Err(object_store::Error::NotFound { .. }) => {
                // Anybody on the way may say so, without a body.
                return match self.objects.lacks(&path(key)?).await? {
                    true => Ok(None),
                    false => {
                        Err(Error::Unavailable(std::io::Error::other("it says that an object is missing, and has it")))
                    }
                };
            }
            Err(error) => return Err(error.into()),
        };
        let attempt = found.attributes.get(&object_store::Attribute::Metadata(ATTEMPT.into()));
        let is_attempts = !self.objects.settings.address.keeps_metadata()
            || attempt.is_some_and(|value| AsRef::<str>::as_ref(value) == file.name);
        Ok((is_attempts && found.meta.size == file.identity.bytes).then_some(found.meta.e_tag))
    }

    /// Looks for a published file. `None`: it isn't there any more, or another one is in its place.
    pub(super) async fn open(&self, file: &StagedFile) -> Result<Option<Object>, Error> {
        self.require(file).await?;
        let FileLocation::Object { key, etag } = &file.identity.location else { return Ok(None) };
        let found = self.object(file, key, etag.as_deref()).await?;
        let Some(etag) = found else { return Ok(None) };
        Ok(Some(Object { objects: Arc::clone(&self.objects), key: path(key)?, etag }))
    }

    /// Removes a published file if it is still the one that was recorded, and the upload of one that isn't published.
    pub async fn remove(&self, file: &StagedFile) -> Result<(), Error> {
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
        if self.id().await? == file.destination { Ok(()) } else { Err(Error::Elsewhere) }
    }

    fn attributes(&self, hidden: &HiddenFile, name: &FileName) -> object_store::PutMultipartOptions {
        let mut attributes = object_store::Attributes::new();
        if self.objects.settings.address.keeps_metadata() {
            let disposition = format!("attachment; filename=\"{}\"", name.of_part(hidden.part));
            attributes.insert(object_store::Attribute::ContentType, name.encoding.media_type().into());
            attributes.insert(object_store::Attribute::ContentDisposition, disposition.into());
            attributes.insert(object_store::Attribute::Metadata(ATTEMPT.into()), hidden.name.clone().into());
        }
        object_store::PutMultipartOptions { attributes, ..Default::default() }
    }
}

/// A published file of a bucket: the very one that was exported.
#[derive(Debug)]
pub struct Object {
    objects: Arc<Objects>,
    key: Path,
    etag: Option<String>,
}

impl Object {
    /// An address that anybody may fetch it at for so long.
    pub(super) async fn url(&self, lifetime: Duration) -> Result<String, Error> {
        let Object { objects, key, .. } = self;
        Ok(objects.store.signed_url(reqwest::Method::GET, key, lifetime).await?.into())
    }

    /// `length` bytes from `from` on.
    ///
    /// # Errors
    /// If the bucket doesn't answer, or the object is another one since it was opened.
    pub(super) async fn part(self, from: u64, length: u64) -> Result<impl AsyncRead + use<>, Error> {
        let Object { objects, key, etag } = self;
        let range = Some(GetRange::Bounded(from..from + length)).filter(|_| length > 0);
        let options = GetOptions { range, if_match: etag, ..GetOptions::default() };
        let found = match objects.patient.get_opts(&key, options).await {
            Err(object_store::Error::Precondition { .. }) => return Err(Error::Gone),
            Err(error) if is_no_object(&error) => return Err(Error::Gone),
            found => found?,
        };
        Ok(StreamReader::new(found.into_stream().map_err(std::io::Error::other)))
    }
}
