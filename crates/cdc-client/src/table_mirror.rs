//! A table of another Postgres, to which the exports of a lane are applied. The exports are from a service, or from a
//! folder of manifests.

use std::sync::Arc;

use uuid::Uuid;

use crate::Error;
use crate::api::Api;
use crate::apply::input::{Input, unpacked};
use crate::apply::{Applied, Changes, Target};
use crate::job_view::ExportView;
use crate::lane_group::{LaneGroup, Turn};
use crate::lane_reader::{ExportSink, LanePosition, LaneReader, SinkOutcome};
use crate::observer::Observer;
use crate::ready_export::{ReadyExport, while_unavailable};
use crate::spool::Spool;
use cdc_manifest::{Manifest, ManifestSource};

/// The table, and its position at the last reading.
pub struct TableMirror {
    target: Target,
    last: Option<LanePosition>,
    source: Option<ManifestSource>,
    observer: Arc<dyn Observer>,
    group: Arc<LaneGroup>,
    /// `None` while the lane waits for others.
    turn: Option<Turn>,
}

impl TableMirror {
    /// Applies all exports of the lane that the table lacks, oldest first, as [`LaneReader`] says.
    pub async fn follow(&mut self, lane: &LaneReader<'_>) -> Result<(), Error> {
        lane.round(self).await
    }

    /// Returns the mirror of a lane of the group, whose turn it is.
    pub fn new(target: Target, observer: Arc<dyn Observer>, group: Arc<LaneGroup>, turn: Turn) -> TableMirror {
        TableMirror { target, last: None, source: None, observer, group, turn: Some(turn) }
    }

    pub(super) fn observer(&self) -> &dyn Observer {
        &*self.observer
    }

    /// Reads the position of the table. Another process may have moved it. So may this process, if the answer to its
    /// COMMIT was lost.
    pub async fn refresh(&mut self) -> Result<(), Error> {
        let found = while_unavailable(&*self.observer, async || Ok(self.target.position().await?)).await;
        let found = found.map_err(|failure| failure.error)?;
        self.source = found.as_ref().map(|found| found.source.clone());
        self.last = found.map(|found| LanePosition {
            job_id: found.job,
            number: found.number(),
            order: None,
            digest: found.digest,
            sha256: None,
        });
        let number = self.last.as_ref().map_or(0, |last| last.number);
        self.group.has_moved(self.target.dataset(), number).await;
        Ok(())
    }

    pub(super) fn group(&self) -> &LaneGroup {
        &self.group
    }

    /// Applies an export, by itself or with the others of its job, and shows the outcome. `open` opens the export's
    /// files, in their order.
    pub(super) async fn apply(
        &mut self,
        manifest: Arc<Manifest>,
        job: Option<Uuid>,
        open: impl Fn() -> Vec<Input> + Send + Sync + 'static,
    ) -> Result<SinkOutcome, Error> {
        let ready = ReadyExport {
            target: self.target.clone(),
            manifest: Arc::clone(&manifest),
            open: Box::new(open),
            observer: Arc::clone(&self.observer),
        };
        let applied = match job {
            Some(id) => self.group.apply(id, self.target.dataset(), ready, &mut self.turn).await,
            None => ready.apply().await,
        };
        if applied.as_ref().is_err_and(Error::is_of_another_lane) {
            self.group.leave(self.target.dataset()).await;
        }
        match applied? {
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

impl ExportSink for TableMirror {
    fn last(&self) -> Option<&LanePosition> {
        self.last.as_ref()
    }

    fn source(&self) -> Option<&ManifestSource> {
        self.source.as_ref()
    }

    async fn write(&mut self, api: &Api, export: &ExportView, manifest: Manifest) -> Result<SinkOutcome, Error> {
        let numbers = |id: Uuid| api.numbers_of_job(id.into());
        let job = self.group.job(&manifest.export.job, api.observer(), numbers).await?;
        let alone = Spool::default();
        let spool = job.as_ref().map_or(&alone, |(_, job)| &job.spool);
        let ranges = spool.fetch(api, export).await?;
        let manifest = Arc::new(manifest);
        let of = Arc::clone(&manifest);
        let open = move || {
            let files = ranges.iter().cloned().zip(&of.export.files);
            files.map(|(range, file)| unpacked(|| Ok(range), &of.export.compression, file)).collect()
        };
        let id = job.as_ref().map(|(id, _)| *id);
        self.apply(manifest, id, open).await
    }
}
