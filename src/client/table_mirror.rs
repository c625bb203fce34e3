//! A table of another Postgres, to which the exports of a lane are applied. The exports are from a service, or from a
//! folder of manifests.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio::time::{Duration, Instant, sleep};

use crate::apply::input::{Input, unpacked};
use crate::apply::{Applied, Changes, Target};
use crate::client::api::Api;
use crate::client::download::{export_files, fetch_part};
use crate::client::job_view::JobView;
use crate::client::lane_reader::{ExportSink, LanePosition, SinkOutcome};
use crate::client::observer::Observer;
use crate::client::{About, Error};
use crate::manifest::{Manifest, ManifestSource};
use crate::telemetry::chain;

/// The time for which a call of the target is retried.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// The table, and its position at the last reading.
pub(crate) struct TableMirror {
    target: Target,
    last: Option<LanePosition>,
    source: Option<ManifestSource>,
    observer: Arc<dyn Observer>,
}

impl TableMirror {
    pub(crate) fn new(target: Target, observer: Arc<dyn Observer>) -> TableMirror {
        TableMirror { target, last: None, source: None, observer }
    }

    /// Returns the observer that shows the work on this table to the user.
    pub(super) fn observer(&self) -> &dyn Observer {
        &*self.observer
    }

    /// Reads the position of the table. Another process may have moved it. So may this process, if the answer to its
    /// COMMIT was lost.
    pub(crate) async fn refresh(&mut self) -> Result<(), Error> {
        let found = while_unavailable(&*self.observer, async || Ok(self.target.position().await?)).await?;
        self.source = found.as_ref().map(|found| found.source.clone());
        self.last = found.map(|found| LanePosition {
            job_id: found.job,
            number: found.number(),
            digest: found.digest,
            sha256: None,
        });
        Ok(())
    }

    /// Applies an export. Retries while the target is unavailable. `open` returns the export's files, in their order.
    pub(super) async fn apply(
        &mut self,
        manifest: &Manifest,
        open: impl AsyncFn() -> Result<Vec<Input>, Error>,
    ) -> Result<SinkOutcome, Error> {
        let apply = async || Ok(self.target.apply(manifest, open().await?).await?);
        match while_unavailable(&*self.observer, apply).await? {
            Applied::NeedsFullExport(why) => return Ok(SinkOutcome::NeedsFullExport(why)),
            Applied::Done(Changes { written, deleted }, remarks) => {
                remarks.iter().for_each(|remark| self.observer.notice(remark));
                let (kind, number) = (&manifest.export.export_type, manifest.number);
                let line = format!("{kind} {number}  {written} rows written, {deleted} deleted");
                self.observer.result(&line).map_err(Error::Output)?;
            }
            Applied::PositionMoved => {}
        }
        self.refresh().await?;
        Ok(SinkOutcome::Written)
    }
}

/// Calls the target. Retries while the target is unavailable, for [`RETRY_TIMEOUT`] after the first failure.
async fn while_unavailable<T>(
    observer: &dyn Observer,
    mut call: impl AsyncFnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    let mut failing_since = None;
    loop {
        let error = match call().await {
            Err(Error::Apply(error)) if error.may_pass() => error,
            done => return done,
        };
        match failing_since {
            None => observer.notice(&format!("{}; trying again for a minute", chain(&error))),
            Some(since) if Instant::now() < since + RETRY_TIMEOUT => {}
            Some(_) => return Err(error.into()),
        }
        failing_since.get_or_insert_with(Instant::now);
        sleep(PAUSE).await;
    }
}

/// Appends a file to the files before it. Returns the file itself if it is the first one.
fn append(all: Option<Arc<File>>, mut part: File) -> io::Result<Arc<File>> {
    let Some(all) = all else { return Ok(Arc::new(part)) };
    io::copy(&mut part, &mut &*all)?;
    Ok(all)
}

/// A part of a file, which several readers can read at once.
#[derive(Clone)]
struct FileRange {
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

impl ExportSink for TableMirror {
    fn last(&self) -> Option<&LanePosition> {
        self.last.as_ref()
    }

    fn source(&self) -> Option<&ManifestSource> {
        self.source.as_ref()
    }

    async fn write(&mut self, api: &Api, export: &JobView, manifest: Manifest) -> Result<SinkOutcome, Error> {
        let id = export.id()?;
        let folder = tempfile::Builder::new().prefix("cdc-export-apply").tempdir().about(|| "a temporary folder")?;
        let files = export_files(export)?;
        // All files of the export, one behind the other: a process may open fewer files than an export has.
        let mut all: Option<Arc<File>> = None;
        let mut ends = Vec::new();
        for file in &files {
            let part = folder.path().join("part");
            fetch_part(api, id, file, &part).await?;
            let opened = File::options().read(true).append(true).open(&part)?;
            // A file without a name is gone when the process ends, also if it is killed.
            fs::remove_file(&part)?;
            let first = all.clone();
            let joined = spawn_blocking(move || append(first, opened)).await??;
            ends.push(joined.metadata()?.len());
            all = Some(joined);
        }
        let all = all.ok_or_else(|| Error::refused("the export has no files"))?;
        let begins = [0].into_iter().chain(ends.iter().copied());
        let ranges: Vec<_> =
            begins.zip(&ends).map(|(at, end)| FileRange { file: Arc::clone(&all), at, end: *end }).collect();
        let open = async || {
            let files = ranges.iter().cloned().zip(&manifest.export.files);
            Ok(files.map(|(range, file)| unpacked(|| Ok(range), &manifest.export.compression, file)).collect())
        };
        self.apply(&manifest, open).await
    }
}
