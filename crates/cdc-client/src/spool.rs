//! A temporary file that holds downloaded files, one behind the other: a process may open fewer files than it downloads
//! before it applies them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::api::Api;
use crate::download::{export_files, fetch_part};
use crate::job_view::ExportView;
use crate::{About, Error};

/// The file. What is downloaded has no name, so it is gone when the process ends, also if it is killed.
#[derive(Default)]
pub(super) struct Spool {
    file: Mutex<Option<Arc<File>>>,
}

impl Spool {
    /// Downloads the files of an export behind those that are there. Returns them in their order.
    pub(super) async fn fetch(&self, api: &Api, export: &ExportView) -> Result<Vec<FileRange>, Error> {
        let folder = tempfile::Builder::new().prefix("cdc-export-apply").tempdir().about(|| "a temporary folder")?;
        let mut ranges = Vec::new();
        for file in &export_files(export)? {
            let part = folder.path().join("part");
            fetch_part(api, file, &part).await?;
            let opened = File::options().read(true).append(true).open(&part)?;
            fs::remove_file(&part)?;
            ranges.push(self.append(opened).await?);
        }
        Ok(ranges)
    }

    /// Appends a file. The first one becomes the spool itself.
    async fn append(&self, mut part: File) -> Result<FileRange, Error> {
        let mut file = self.file.lock().await;
        let before = file.take();
        let joined = spawn_blocking(move || {
            let Some(all) = before else {
                let end = part.metadata()?.len();
                return Ok(FileRange { file: Arc::new(part), at: 0, end });
            };
            let at = all.metadata()?.len();
            let end = at + io::copy(&mut part, &mut &*all)?;
            io::Result::Ok(FileRange { file: all, at, end })
        });
        let range = joined.await??;
        *file = Some(Arc::clone(&range.file));
        Ok(range)
    }
}

/// A part of a file, which several readers can read at once.
#[derive(Clone)]
pub(super) struct FileRange {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for FileRange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = (self.end - self.at).min(buffer.len() as u64) as usize;
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
