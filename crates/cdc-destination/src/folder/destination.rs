//! The [`Destination`] of a folder: runs each function of [`Folder`] on a thread, because a disk may block.

use std::fs::File;
use std::io::SeekFrom;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::cannot;
use crate::folder::Folder;
use crate::limited::blocking;
use crate::marker_file::MARKER_MAX_BYTES;
use crate::{
    Destination, Draft, Error, ExportFiles, FileLocation, FileName, HiddenFile, Marker, MarkerFile, Prepared,
    Published, PublishedFile, SmallFile, StagedFile, stall_limit,
};

/// The bytes of a file that are read ahead for a client. By default tokio keeps up to 2 MiB.
const READ_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct FolderDestination(Arc<Folder>);

impl FolderDestination {
    pub(crate) fn new(folder: Folder) -> FolderDestination {
        FolderDestination(Arc::new(folder))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let folder = Arc::clone(&self.0);
        blocking(move || work(&folder)).await
    }

    async fn run_on<T: Send + 'static>(
        &self,
        file: &StagedFile,
        name: &str,
        work: impl FnOnce(&Folder, &StagedFile, &str) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (file, name) = (file.clone(), name.to_owned());
        self.run(move |folder| work(folder, &file, &name)).await
    }
}

#[async_trait]
impl Destination for FolderDestination {
    async fn prepare(&self) -> Result<Prepared, Error> {
        self.run(Folder::prepare).await
    }

    async fn id(&self) -> Result<Uuid, Error> {
        self.run(Folder::destination_id).await
    }

    fn stall_limit(&self) -> Option<Duration> {
        Some(stall_limit())
    }

    async fn require_room(&self) -> Result<(), Error> {
        self.run(Folder::require_room).await
    }

    async fn create(
        &self,
        hidden: &HiddenFile,
        _name: &FileName,
        _stopped: &CancellationToken,
    ) -> Result<Box<dyn Draft>, Error> {
        let hidden = hidden.clone();
        Ok(Box::new(self.run(move |folder| folder.create(&hidden)).await?))
    }

    async fn publish(&self, file: &StagedFile, name: &str) -> Result<Published, Error> {
        self.run_on(file, name, |folder, file, name| folder.give_name(file, name, false)).await
    }

    async fn rename(&self, file: &StagedFile, name: &str) -> Result<Published, Error> {
        self.run_on(file, name, |folder, file, name| folder.give_name(file, name, true)).await
    }

    fn location(&self, _file: &FileLocation, name: &str) -> Option<String> {
        self.0.location(name)
    }

    async fn open(&self, file: &StagedFile, name: &str) -> Result<Option<Box<dyn PublishedFile>>, Error> {
        let opened = self.run_on(file, name, Folder::open).await?;
        Ok(opened.map(|file| Box::new(OpenFile { file, name: name.to_owned() }) as Box<dyn PublishedFile>))
    }

    async fn remove(&self, files: &[(String, StagedFile)]) -> Result<(), Error> {
        let files = files.to_vec();
        self.run(move |folder| folder.remove(&files)).await
    }

    async fn hidden_files(&self) -> Result<Vec<HiddenFile>, Error> {
        self.run(Folder::hidden_files).await
    }

    async fn sweep(&self, hidden: &HiddenFile, unwritten_for: Option<Duration>) -> Result<bool, Error> {
        let hidden = hidden.clone();
        self.run(move |folder| folder.sweep(&hidden, unwritten_for)).await
    }

    async fn read_small(&self, name: &str, most: u64) -> Result<Option<SmallFile>, Error> {
        let name = name.to_owned();
        self.run(move |folder| folder.read_small(&name, most)).await
    }

    async fn put_small(&self, draft: &str, name: &str, text: &str, before: Option<&SmallFile>) -> Result<bool, Error> {
        let (draft, name, text, before) = (draft.to_owned(), name.to_owned(), text.to_owned(), before.cloned());
        self.run(move |folder| folder.put_small(&draft, &name, &text, before.as_ref())).await
    }

    async fn remove_small(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.run(move |folder| folder.remove_small(&name)).await
    }

    fn numbers_manifests(&self) -> bool {
        false
    }

    async fn lane_markers(&self, files: &[MarkerFile]) -> Result<Vec<Option<Marker>>, Error> {
        let files = files.to_vec();
        let read = |folder: &Folder, file: &MarkerFile| file.marker(folder.read_small(file.name(), MARKER_MAX_BYTES));
        self.run(move |folder| Ok(files.iter().map(|file| read(folder, file).unwrap_or(None)).collect())).await
    }

    async fn last_manifest(&self, _record: &ExportFiles) -> Result<u64, Error> {
        Ok(0)
    }
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    name: String,
}

#[async_trait]
impl PublishedFile for OpenFile {
    async fn url(&self, _lifetime: Duration) -> Result<Option<String>, Error> {
        Ok(None)
    }

    async fn part(self: Box<Self>, from: u64, length: u64) -> Result<Pin<Box<dyn AsyncRead + Send>>, Error> {
        let OpenFile { file, name } = *self;
        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(READ_BYTES);
        file.seek(SeekFrom::Start(from)).await.map_err(cannot("read", name))?;
        Ok(Box::pin(file.take(length)))
    }
}
