//! A destination in memory: a third implementation of the contract, in one file.

use std::collections::HashMap;
use std::io::Cursor;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cdc_export::file::hidden::HiddenFile;
use cdc_export::file::name::FileName;
use cdc_export::file::{FileIdentity, FileLocation, FileRecord, StagedFile};
use cdc_export::job::marker::Marker;
use cdc_export::job::{ConsumerId, JobId};
use cdc_export::manifest::batch;
use cdc_export::sink::{Destination, Draft, Error, MarkerFile, Prepared, Published, PublishedFile, WrittenManifest};
use ring::digest::{SHA256, digest};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A destination that forgets everything when its last clone is dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    id: Option<Uuid>,
    /// The files by their names, hidden or final.
    files: HashMap<String, MemoryFile>,
    markers: HashMap<String, Marker>,
    manifests: HashMap<String, String>,
    last_inode: u64,
}

#[derive(Clone, Debug)]
struct MemoryFile {
    inode: u64,
    bytes: Vec<u8>,
    written: Instant,
}

impl MemoryFile {
    fn identity(&self) -> FileIdentity {
        let location = FileLocation::Folder { inode: self.inode, modified_ns: 0 };
        FileIdentity { bytes: self.bytes.len() as u64, location }
    }
}

impl State {
    fn id(&self) -> Result<Uuid, Error> {
        self.id.ok_or(Error::Unused)
    }

    fn require(&self, file: &StagedFile) -> Result<(), Error> {
        if self.id()? == file.destination { Ok(()) } else { Err(Error::Elsewhere) }
    }

    /// Returns true if the recorded file has this name.
    fn is_at(&self, file: &StagedFile, name: &str) -> bool {
        self.files.get(name).is_some_and(|found| found.identity() == file.identity)
    }

    fn publish(&mut self, file: &StagedFile, name: &str, moves: bool) -> Result<Published, Error> {
        self.require(file)?;
        let names: Vec<String> = self.files.keys().filter(|name| self.is_at(file, name)).cloned().collect();
        match names.first() {
            None => Ok(Published::Gone),
            Some(found) if found == name => Ok(Published::Done(file.identity.location.clone())),
            Some(found) if !moves && !found.starts_with('.') => Ok(Published::Misnamed),
            Some(_) if self.files.contains_key(name) => Ok(Published::Taken),
            Some(found) => {
                let content = self.files.remove(found).unwrap();
                self.files.insert(name.to_owned(), content);
                Ok(Published::Done(file.identity.location.clone()))
            }
        }
    }
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

#[async_trait]
impl Destination for Memory {
    async fn prepare(&self) -> Result<Prepared, Error> {
        let mut state = self.state();
        let prepared = if state.id.is_some() { Prepared::Known } else { Prepared::New };
        state.id.get_or_insert_with(Uuid::new_v4);
        Ok(prepared)
    }

    async fn id(&self) -> Result<Uuid, Error> {
        self.state().id()
    }

    async fn require_room(&self) -> Result<(), Error> {
        self.state().id().map(drop)
    }

    async fn create(
        &self,
        hidden: &HiddenFile,
        _name: &FileName,
        _stopped: &CancellationToken,
    ) -> Result<Box<dyn Draft>, Error> {
        let mut state = self.state();
        let id = state.id()?;
        state.last_inode += 1;
        let file = MemoryFile { inode: state.last_inode, bytes: Vec::new(), written: Instant::now() };
        state.files.insert(hidden.name.clone(), file);
        Ok(Box::new(MemoryDraft { memory: self.clone(), id, name: hidden.name.clone() }))
    }

    async fn publish(&self, file: &StagedFile, name: &str) -> Result<Published, Error> {
        self.state().publish(file, name, false)
    }

    async fn rename(&self, file: &StagedFile, name: &str) -> Result<Published, Error> {
        self.state().publish(file, name, true)
    }

    fn location(&self, _file: &FileLocation, name: &str) -> Option<String> {
        Some(format!("memory:{name}"))
    }

    async fn open(&self, file: &StagedFile, name: &str) -> Result<Option<Box<dyn PublishedFile>>, Error> {
        let state = self.state();
        state.require(file)?;
        let found = state.files.get(name).filter(|found| found.identity() == file.identity).cloned();
        Ok(found.map(|found| Box::new(found) as Box<dyn PublishedFile>))
    }

    async fn remove(&self, files: &[(String, StagedFile)]) -> Result<(), Error> {
        let mut state = self.state();
        for (name, file) in files {
            state.require(file)?;
            if state.is_at(file, name) {
                state.files.remove(name);
            }
        }
        Ok(())
    }

    async fn discard_file(&self, file: &StagedFile, name: &str) -> Result<(), Error> {
        self.remove(&[(file.name.clone(), file.clone()), (name.to_owned(), file.clone())]).await
    }

    async fn hidden_files(&self) -> Result<Vec<HiddenFile>, Error> {
        Ok(self.state().files.keys().filter_map(|name| HiddenFile::read(name)).collect())
    }

    async fn sweep(&self, hidden: &HiddenFile, unwritten_for: Option<Duration>) -> Result<bool, Error> {
        let mut state = self.state();
        let Some(found) = state.files.get(&hidden.name) else { return Ok(false) };
        if unwritten_for.is_some_and(|time| found.written.elapsed() < time) {
            return Ok(false);
        }
        Ok(state.files.remove(&hidden.name).is_some())
    }

    async fn lane_marker(&self, file: &MarkerFile) -> Result<Option<Marker>, Error> {
        Ok(self.state().markers.get(file.name()).cloned())
    }

    async fn lane_markers(&self, files: &[MarkerFile]) -> Result<Vec<Option<Marker>>, Error> {
        let state = self.state();
        Ok(files.iter().map(|file| state.markers.get(file.name()).cloned()).collect())
    }

    async fn write_lane_marker(
        &self,
        file: &MarkerFile,
        marker: &Marker,
        replaced: Option<JobId>,
    ) -> Result<Option<Marker>, Error> {
        let mut state = self.state();
        match state.markers.get(file.name()) {
            Some(present) if present != marker && Some(present.job) != replaced => Ok(Some(present.clone())),
            _ => {
                state.markers.insert(file.name().to_owned(), marker.clone());
                Ok(None)
            }
        }
    }

    async fn write_manifest(&self, record: &FileRecord, _number: u64, text: &str) -> Result<WrittenManifest, Error> {
        let mut state = self.state();
        let present = state.manifests.entry(record.name.clone()).or_insert_with(|| text.to_owned());
        Ok(if present == text { WrittenManifest::Done } else { WrittenManifest::Taken })
    }

    async fn is_manifest_name_taken(&self, record: &FileRecord, text: &str) -> Result<bool, Error> {
        Ok(self.state().manifests.get(&record.name).is_some_and(|present| present != text))
    }

    async fn remove_manifest(&self, record: &FileRecord, text: &str) -> Result<(), Error> {
        let mut state = self.state();
        if state.manifests.get(&record.name).is_some_and(|present| present == text) {
            state.manifests.remove(&record.name);
        }
        Ok(())
    }

    async fn write_batch_manifest(&self, record: &FileRecord, text: &str) -> Result<WrittenManifest, Error> {
        let path =
            batch::path(record.consumer.as_ref().unwrap().as_str(), &record.batch.as_ref().unwrap().id.to_string());
        let mut state = self.state();
        let present = state.manifests.entry(path).or_insert_with(|| text.to_owned());
        Ok(if present == text { WrittenManifest::Done } else { WrittenManifest::Taken })
    }

    async fn remove_batch_manifest(&self, consumer: &ConsumerId, id: JobId, text: &str) -> Result<(), Error> {
        let path = batch::path(consumer.as_str(), &id.to_string());
        let mut state = self.state();
        if state.manifests.get(&path).is_some_and(|present| present == text) {
            state.manifests.remove(&path);
        }
        Ok(())
    }

    async fn last_manifest(&self, _record: &FileRecord) -> Result<u64, Error> {
        Ok(0)
    }
}

struct MemoryDraft {
    memory: Memory,
    id: Uuid,
    name: String,
}

impl Draft for MemoryDraft {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut state = self.memory.state();
        let file = state.files.get_mut(&self.name).ok_or(Error::Gone)?;
        file.bytes.extend(bytes);
        Ok(())
    }

    fn size(&self) -> u64 {
        self.memory.state().files.get(&self.name).map_or(0, |file| file.bytes.len() as u64)
    }

    fn stage(self: Box<Self>) -> Result<StagedFile, Error> {
        let state = self.memory.state();
        let file = state.files.get(&self.name).ok_or(Error::Gone)?;
        let sha256 = hex::encode(digest(&SHA256, &file.bytes));
        Ok(StagedFile { destination: self.id, name: self.name.clone(), sha256, identity: file.identity() })
    }
}

#[async_trait]
impl PublishedFile for MemoryFile {
    async fn url(&self, _lifetime: Duration) -> Result<Option<String>, Error> {
        Ok(None)
    }

    async fn part(self: Box<Self>, from: u64, length: u64) -> Result<Pin<Box<dyn AsyncRead + Send>>, Error> {
        let mut file = Cursor::new(self.bytes);
        file.set_position(from);
        Ok(Box::pin(file.take(length)))
    }
}
