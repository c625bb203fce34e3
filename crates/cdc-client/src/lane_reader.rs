//! Reads a consumer's lane: writes each export after the last one to a sink, and submits a new export if there is none.

use std::collections::HashSet;

use pg_rows::encoding::Encoding;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Error;
use crate::answer::CallError;
use crate::api::{Api, RefusedExport};
use crate::download::export_files;
use crate::job_view::ExportView;
use crate::job_wait::JobWait;
use crate::request::ExportRequest;
use cdc_manifest::{After, ConsumerId, JobId, Lane, Manifest, ManifestSource};
use pg_rows::export_type::ExportType;
use pg_session::failure::chain;

/// The maximum number of submissions if other exports come first each time.
const MAX_SUBMISSIONS: u32 = 5;

/// The last export that a sink has written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LanePosition {
    pub(super) job_id: Uuid,
    pub(super) number: u64,
    /// Its place in the lane. It is above that of all exports that the sink had before. `None` if the sink's readers
    /// don't go by it.
    pub(super) order: Option<u64>,
    /// Its digest, which the manifest of the next export names.
    pub(super) digest: String,
    /// The SHA-256 of its only file.
    pub(super) sha256: Option<String>,
}

impl LanePosition {
    /// Returns the position of a sink that has written this export.
    pub(super) fn from_export(export: &ExportView, manifest: &Manifest) -> Result<LanePosition, Error> {
        let not_published = || Error::Refused(format!("the export {} is not published", export.job.id));
        Ok(LanePosition {
            job_id: export.job.id.as_uuid(),
            number: export.number.ok_or_else(not_published)?,
            order: manifest.order(),
            digest: export.digest.as_ref().ok_or_else(not_published)?.to_string(),
            sha256: export.sha256.as_ref().map(ToString::to_string),
        })
    }

    fn after(&self) -> After {
        After::Export { job: self.job_id.into(), sha256: Some(self.sha256.as_ref().unwrap_or(&self.digest).clone()) }
    }
}

/// A sink of the exports of one lane. It writes them in order, and stores its position.
pub(crate) trait ExportSink {
    fn last(&self) -> Option<&LanePosition>;

    /// Returns the database that the exports are from. Returns `None` if it is unknown.
    fn source(&self) -> Option<&ManifestSource>;

    /// Writes the next export: either all of it together with the position, or nothing. A cancelled call can be
    /// repeated. `manifest` is that of the export, and is checked.
    ///
    /// # Errors
    /// If the export can't be downloaded or written now. A later call with the same export may succeed.
    async fn write(&mut self, api: &Api, export: &ExportView, manifest: Manifest) -> Result<SinkOutcome, Error>;
}

#[derive(Debug)]
pub(crate) enum SinkOutcome {
    Written,
    /// The export can't be written, for this reason. Only a full export can come next.
    NeedsFullExport(String),
}

/// Reads the exports of a lane from a service in their order, and submits new ones.
///
/// Writes all available exports to a sink, oldest first. Then submits another export, if requested, and writes it. A
/// cancelled call loses nothing: the next call continues from the sink's position.
pub struct LaneReader<'b> {
    pub api: &'b Api,
    pub consumer: ConsumerId,
    pub dataset: String,
    /// The type of export to submit if there is nothing to write. `None` submits nothing.
    pub request: Option<ExportType>,
    pub encoding: Encoding,
    /// True if an export of the type was submitted for this round already, in a job of several datasets.
    pub is_submitted: bool,
    pub acks: bool,
    /// True if the sink goes on from another or a restored database, by a full export.
    pub adopts: bool,
}

enum SubmissionOutcome {
    Completed,
    /// Another client's export came first.
    Overtaken,
    /// Only a full export can come next, for this reason.
    NeedsFullExport(String),
}

enum NextExports {
    Found(Vec<ExportView>),
    /// Only a full export can come next, for this reason.
    NeedsFullExport(String),
}

impl LaneReader<'_> {
    pub(crate) async fn round(&self, sink: &mut impl ExportSink) -> Result<(), Error> {
        match self.read(sink).await {
            Err(Error::NextRound) => Ok(()),
            done => done,
        }
    }

    async fn read(&self, sink: &mut impl ExportSink) -> Result<(), Error> {
        let (mut submitted, mut written) = (self.request.filter(|_| self.is_submitted), HashSet::new());
        // An earlier process may have been killed before its acknowledgement. An error is ignored, because the
        // following calls fail with it too.
        let _ = self.acknowledge(sink).await;
        loop {
            let needs_full = match self.next(sink.last()).await? {
                NextExports::Found(exports) if exports.is_empty() => match (self.request, submitted) {
                    (None, _) | (_, Some(_)) => {
                        if self.request.is_none() && sink.last().is_none() {
                            let (dataset, consumer) = (&self.dataset, &self.consumer);
                            self.api.observer().notice(&format!(
                                "the consumer {consumer} has no export of {dataset}: `--request` asks for one"
                            ));
                        }
                        return Ok(());
                    }
                    (Some(wanted), None) => match self.submit(wanted, sink.last()).await? {
                        SubmissionOutcome::Completed => {
                            submitted = Some(wanted);
                            None
                        }
                        SubmissionOutcome::Overtaken => None,
                        SubmissionOutcome::NeedsFullExport(why) => Some(why),
                    },
                },
                NextExports::Found(exports) => self.write_all(sink, &exports, &mut written).await?,
                NextExports::NeedsFullExport(why) => Some(why),
            };
            let Some(why) = needs_full else { continue };
            if self.request.is_none() && !self.adopts {
                return Err(Error::Refused(format!("{why}: only a full export can follow: --request submits one")));
            }
            if submitted == Some(ExportType::Full) {
                return Err(Error::Refused(format!("{why}, although a full export has just completed")));
            }
            self.require_source(sink).await?;
            submitted = Some(ExportType::Full);
            self.api.observer().notice(&format!("{why}: asking for a full export"));
            if let SubmissionOutcome::NeedsFullExport(why) = self.submit(ExportType::Full, None).await? {
                return Err(Error::Refused(format!("a full export was refused: {why}")));
            }
            let full = self.newest_full().await?.ok_or_else(|| Error::refused("the full export is missing"))?;
            if let SinkOutcome::NeedsFullExport(why) = self.write(sink, &full).await? {
                return Err(Error::Refused(format!("{why}, although it has just completed")));
            }
        }
    }

    /// Returns an error if the sink would refuse a full export of the service, as far as its newest export shows that.
    async fn require_source(&self, sink: &impl ExportSink) -> Result<(), Error> {
        let Some(newest) = self.newest(None).await? else { return Ok(()) };
        let manifest = self.api.manifest(newest.job.id, &self.dataset).await?;
        self.require_same_source(sink, &manifest)?;
        // An export from before a restore says nothing of the orders after it.
        if self.is_requested_after(&newest, sink.last()) { self.require_newer(sink, &manifest) } else { Ok(()) }
    }

    fn is_requested_after(&self, export: &ExportView, last: Option<&LanePosition>) -> bool {
        last.is_some_and(|last| last.job_id < export.job.id.as_uuid())
    }

    fn require_same_source(&self, sink: &impl ExportSink, manifest: &Manifest) -> Result<(), Error> {
        let found = &manifest.export.source;
        match sink.source() {
            Some(had) if had != found && !self.adopts => Err(Error::Refused(format!(
                "another_source: the exports until now are from the database {} of cluster {}, and the service has the \
                 database {} of cluster {}: --adopt goes on from it by a full export",
                had.database, had.cluster, found.database, found.cluster
            ))),
            _ => Ok(()),
        }
    }

    /// Returns an error if an export is not newer than the last one of the sink.
    ///
    /// The readers of a folder may go by `order`. It goes back if the source was restored, and the markers in its
    /// output folder were lost. Whoever controls the service could also replay a signed full export to any sink.
    fn require_newer(&self, sink: &impl ExportSink, manifest: &Manifest) -> Result<(), Error> {
        let Some(last) = sink.last().filter(|_| !self.adopts) else { return Ok(()) };
        let id = manifest.export.job.id();
        if let Some(had) = last.order.filter(|had| manifest.order() <= Some(*had)) {
            let order = manifest.order().unwrap_or(0);
            return Err(Error::Refused(format!(
                "older: the export {id} has the order {order}, which is not above {had}, the highest one until now: the \
                 source was restored without its output folder. Load and remove what is here, then call once with --adopt"
            )));
        }
        if manifest.number <= last.number && !self.api.keys.is_empty() {
            let why = "is not newer than the last one: after a restore of the source, --adopt takes it";
            return Err(Error::Refused(format!("older: the export {id} {why}")));
        }
        Ok(())
    }

    /// Writes exports to the sink. Returns the reason if only a full export can come next. `written` are the exports of
    /// this round, so that it ends.
    async fn write_all(
        &self,
        sink: &mut impl ExportSink,
        exports: &[ExportView],
        written: &mut HashSet<JobId>,
    ) -> Result<Option<String>, Error> {
        for export in exports {
            let id = export.job.id;
            if written.contains(&id) {
                return Err(Error::Refused(format!("the service lists the export {id} after itself")));
            }
            let obstacle = match self.write(sink, export).await {
                Ok(SinkOutcome::Written) => {
                    let is_last = sink.last().is_some_and(|last| last.job_id == id.as_uuid());
                    // Another process has moved the sink's position. The exports have to be listed again.
                    if !is_last {
                        return Ok(None);
                    }
                    written.insert(id);
                    continue;
                }
                Ok(SinkOutcome::NeedsFullExport(why)) => Ok(why),
                Err(error) if error.is_elsewhere() && self.request == Some(ExportType::Full) => Ok(chain(&error)),
                // Only a newer full export can go past a lost file, or a row that the target refuses.
                Err(error) if error.is_elsewhere() || error.is_of_target() => Err(error),
                Err(error) => return Err(error),
            };
            let full = self.newest_full().await?.filter(|full| full.number > export.number);
            let Some(full) = full else { return obstacle.map(Some) };
            let why = obstacle.unwrap_or_else(|error| chain(&error));
            self.api.observer().notice(&format!("{why}: going on from the full export {}", full.job.id));
            return Ok(match self.write(sink, &full).await? {
                SinkOutcome::Written => None,
                SinkOutcome::NeedsFullExport(why) => Some(why),
            });
        }
        Ok(None)
    }

    async fn write(&self, sink: &mut impl ExportSink, export: &ExportView) -> Result<SinkOutcome, Error> {
        let written = async {
            let manifest = self.manifest(export).await?;
            self.require_same_source(sink, &manifest)?;
            self.require_newer(sink, &manifest)?;
            sink.write(self.api, export, manifest).await
        };
        let outcome = match written.await {
            Err(error) if error.is_gone() => {
                let why = format!("the service has the files of the export {} no more", export.job.id);
                return Ok(SinkOutcome::NeedsFullExport(why));
            }
            outcome => outcome?,
        };
        if matches!(outcome, SinkOutcome::Written) {
            self.acknowledge(sink).await?;
        }
        Ok(outcome)
    }

    /// Reads the manifest of an export, before any of its files is downloaded.
    ///
    /// # Errors
    /// If the manifest isn't that of this export in this lane: a service could replay the signed one of another.
    async fn manifest(&self, export: &ExportView) -> Result<Manifest, Error> {
        let id = export.job.id;
        let manifest = self.api.manifest(id, &self.dataset).await?;
        let chained = &manifest.export;
        let served =
            export_files(export)?.into_iter().map(|file| (file.view.bytes.to_string(), file.view.sha256.to_string()));
        let is_same = served.eq(chained.files.iter().map(|file| (file.bytes.clone(), file.sha256.clone())))
            && export.digest.as_deref() == Some(&manifest.digest)
            && export.number == Some(manifest.number)
            && chained.job.id() == id.to_string();
        if !is_same {
            return Err(Error::Refused(format!(
                "the manifest of {id} is that of another export, or lists other files"
            )));
        }
        if (&*chained.consumer, &chained.dataset) != (self.consumer.as_str(), &self.dataset) {
            return Err(Error::Refused(format!(
                "the manifest of {id} is of {} of the consumer {}",
                chained.dataset.escape_debug(),
                chained.consumer.escape_debug()
            )));
        }
        Ok(manifest)
    }

    async fn acknowledge(&self, sink: &impl ExportSink) -> Result<(), Error> {
        match sink.last() {
            Some(last) if self.acks => self.api.ack(last.job_id.into(), &self.dataset).await,
            _ => Ok(()),
        }
    }

    async fn next(&self, last: Option<&LanePosition>) -> Result<NextExports, Error> {
        let Some(last) = last else { return self.first().await };
        let after = last.job_id.into();
        match self.api.published_after(self.lane(), after).await {
            Ok(exports) => Ok(NextExports::Found(exports)),
            // The service doesn't know the last export. A full export that was requested since then replaces it.
            Err(Error::Call(error @ CallError::Refused { .. })) if error.has_code("database_restored") => {
                let full = self.newest_full().await?;
                let Some(full) = full.filter(|full| self.is_requested_after(full, Some(last))) else {
                    return Ok(NextExports::NeedsFullExport(error.to_string()));
                };
                self.api.observer().notice(&format!("{error}: going on from the full export {}", full.job.id));
                Ok(NextExports::Found(vec![full]))
            }
            Err(error) => Err(error),
        }
    }

    /// Lists the exports for a sink without any. Returns the newest full export only. If there is none, returns the
    /// oldest exports of the lane.
    async fn first(&self) -> Result<NextExports, Error> {
        if let Some(full) = self.newest_full().await? {
            return Ok(NextExports::Found(vec![full]));
        }
        let oldest = self.api.oldest_exports(self.lane()).await?;
        match oldest.first() {
            Some(first) if first.number != Some(1) => Ok(NextExports::NeedsFullExport(
                "the first exports of this consumer and dataset were removed, and none of the others is full"
                    .to_owned(),
            )),
            _ => Ok(NextExports::Found(oldest)),
        }
    }

    async fn newest_full(&self) -> Result<Option<ExportView>, Error> {
        self.newest(Some(ExportType::Full)).await
    }

    /// Returns the newest completed export of the lane.
    async fn newest(&self, export_type: Option<ExportType>) -> Result<Option<ExportView>, Error> {
        self.api.newest_export(self.lane(), export_type).await
    }

    fn lane(&self) -> Lane<'_> {
        Lane { consumer: &self.consumer, dataset: &self.dataset }
    }

    /// Submits an export that follows `last`, and waits until it ends.
    async fn submit(&self, export_type: ExportType, last: Option<&LanePosition>) -> Result<SubmissionOutcome, Error> {
        // A full export can follow any position.
        let is_full = export_type == ExportType::Full;
        let after = (!is_full).then(|| last.map_or(After::Nothing, LanePosition::after));
        let consumer = Some(self.consumer.clone());
        let request = ExportRequest::new(consumer, export_type, self.encoding);
        let request = ExportRequest { dataset: Some(self.dataset.clone()), after, skip_empty: Some(true), ..request };
        for _ in 0..MAX_SUBMISSIONS {
            let refused = match self.api.submit(&request).await {
                Ok(id) => return self.outcome(id).await,
                Err(Error::ExportRefused(refused)) => refused,
                Err(error) => return Err(error),
            };
            let RefusedExport { code, open, .. } = &refused;
            match (&**code, open.as_slice()) {
                ("database_restored", _) => return Ok(SubmissionOutcome::NeedsFullExport(refused.to_string())),
                ("full_only", _) if !is_full => return Box::pin(self.submit(ExportType::Full, last)).await,
                ("out_of_step", []) => return Ok(SubmissionOutcome::Overtaken),
                ("out_of_step", [open, ..]) => drop(self.wait(*open).await?),
                _ => return Err(refused.into()),
            }
        }
        Err(Error::refused("other exports of the consumer came first each time: try again later"))
    }

    async fn outcome(&self, id: JobId) -> Result<SubmissionOutcome, Error> {
        let job = self.wait(id).await?.job;
        let failure = job.error.as_ref().filter(|_| job.has_status("failed"));
        match failure {
            _ if job.has_status("completed") => Ok(SubmissionOutcome::Completed),
            Some(error) if &*error.code == "full_export_needed" => {
                Ok(SubmissionOutcome::NeedsFullExport(error.detail.to_string()))
            }
            Some(error) => Err(Error::Refused(format!("the export {id} failed: {error}"))),
            None => Err(Error::Refused(format!("the export {id} was {}", job.status))),
        }
    }

    async fn wait(&self, id: JobId) -> Result<ExportView, Error> {
        let mut wait = JobWait::begin(self.api, id);
        loop {
            let export = self.api.poll(id, Some(&self.dataset)).await?;
            if export.job.has_ended() {
                return Ok(export);
            }
            wait.show(&export.progress()).await;
        }
    }
}
