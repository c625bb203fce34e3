//! Positions and watermarks of consumers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::join_all;

use crate::audit::Action;
use crate::freshness::{LaneFacts, LaneHistory, LaneState};
use crate::job::unacknowledged::Unacknowledged;
use crate::job::{Export, Job};
use crate::service::deadline::{on_table, with_timeout};
use crate::service::{COUNTING_TIMEOUT, CachedRead, DATASETS_CACHE_TIME, Error, Service};
use crate::store::moments::LoggedChanges;
use crate::store::watermarks::{ConsumerPosition, ConsumerRemoval, WatermarkRemoval};
use cdc_capture::{ConsumerLag, Continuity, LaneEvidence, LogUse, Readiness, Waiting};
use cdc_dataset::{Capture, Dataset, Description, Fault, Faults};
use cdc_destination::{Destination, Marker, MarkerFile};
use cdc_manifest::{ConsumerId, Lane, is_dataset_name};
use pg_session::failure::chain;

/// Maximum number of lanes of a consumer that are read together.
const MAX_LANES: usize = 1_000;
const LANES_PER_PAGE: u32 = 200;

/// Time limit for reading lane markers from the destination. Without them, only the timeline reveals a restore.
const MARKERS_TIMEOUT: Duration = Duration::from_millis(500);

/// A consumer's state in a dataset, as a list shows it.
#[derive(Clone, Debug)]
pub struct ListedConsumer {
    pub lag: ConsumerLag,
    /// The time when the table was read.
    pub as_of: DateTime<Utc>,
    pub last_export: Option<Export>,
    /// The unacknowledged exports, or `None` if the consumer has never acknowledged one.
    pub unacknowledged: Option<Unacknowledged>,
    /// The bytes of the change log that the position holds, or `None` if it holds none or they are unknown.
    pub log_use: Option<LogUse>,
    pub history: LaneHistory,
    /// The age of the oldest change that no export has, or `None` if it is unknown.
    pub behind: Option<Duration>,
    /// Its state, or `None` if it can't be told now.
    pub state: Option<LaneState>,
}

/// A dataset, and the consumers of it that a page has, each with whether it has a position.
pub(super) type LagKey = (String, Vec<(ConsumerId, bool)>);

impl Service {
    pub async fn watermark(&self, lane: Lane<'_>) -> Result<DateTime<Utc>, Error> {
        self.dataset(lane.dataset)?;
        with_timeout(self.store.watermark(lane)).await?.ok_or(Error::NoWatermark)
    }

    /// Lists the states of the consumers that the caller may see, by id. Starts after `after`, and includes only the
    /// consumer `only`, if given.
    pub async fn consumers(
        &self,
        after: Option<Lane<'_>>,
        only: Option<ConsumerId>,
        limit: u32,
    ) -> Result<Vec<ListedConsumer>, Error> {
        if only.is_some() && !self.bounds.allow_consumer(only.as_ref()) {
            return Ok(Vec::new());
        }
        let mut bounds = self.bounds.clone();
        bounds.consumers = only.map(|only| vec![only]).or(bounds.consumers);
        let positions = with_timeout(self.store.positions(after, &bounds, limit)).await?;
        let (ids, datasets): (Vec<_>, Vec<_>) =
            positions.iter().map(|position| (position.consumer.as_str(), position.dataset.as_str())).unzip();
        let exports = self.visible_exports(with_timeout(self.store.last_exports(&ids, &datasets)).await?);
        let mut last_exports: HashMap<_, _> = exports
            .into_iter()
            .filter_map(|export| Some(((export.consumer.clone()?, export.dataset.clone()), export)))
            .collect();
        let mut unacknowledged = with_timeout(self.store.unacknowledged(&ids, &datasets)).await?;
        let (mut histories, now) = with_timeout(self.store.histories(&ids, &datasets)).await?;
        let changes = with_timeout(self.store.logged_changes(&ids, &datasets)).await?;
        let changes: HashMap<_, _> =
            changes.iter().map(|changes| ((&changes.consumer, &changes.dataset), changes)).collect();
        let (lags, log_use) = tokio::join!(self.lags(&positions), self.log_use(&ids, &datasets));
        let log_use: HashMap<_, _> =
            log_use.iter().map(|of| ((of.consumer_id.as_str(), of.dataset.as_str()), of)).collect();
        let listed = |(CachedRead { value: lag, as_of }, position): (CachedRead<ConsumerLag>, &ConsumerPosition)| {
            let lane = (position.consumer.clone(), lag.dataset.clone());
            let last_export = last_exports.remove(&lane);
            let unacknowledged = unacknowledged.remove(&lane);
            let log_use = log_use.get(&(lag.consumer.as_str(), lag.dataset.as_str())).copied().cloned();
            let history = histories.remove(&(lag.consumer.clone(), lag.dataset.clone())).unwrap_or_default();
            let behind = self.behind(&lag, &history, changes.get(&(&position.consumer, &lag.dataset)).copied(), now);
            let facts = LaneFacts {
                table: lag.table,
                history,
                has_position: position.is_saved,
                export_type: last_export.as_ref().map(|export| export.export_type),
                continuity: lag.continuity,
                behind,
                unacknowledged,
                fresh_within: self.catalog.fresh_within(Lane { consumer: &position.consumer, dataset: &lag.dataset }),
            };
            let is_dataset = self.catalog.get(&lag.dataset).is_some();
            let state = if is_dataset { facts.state(now) } else { Some(LaneState::Gone) };
            ListedConsumer { lag, as_of, last_export, unacknowledged, log_use, history, behind, state }
        };
        Ok(lags.into_iter().zip(&positions).map(listed).collect())
    }

    /// Returns the state of each table of those of these datasets whose changes nothing looks for, and the word of
    /// continuity that its next export will have. Leaves out tables that can't be read now.
    async fn tables_without_capture(
        &self,
        names: &BTreeSet<&str>,
    ) -> BTreeMap<String, (Readiness, Option<Continuity>)> {
        let is_uncaptured = |dataset: &Dataset| dataset.capture == Capture::None && names.contains(&*dataset.name);
        if !self.catalog.iter().any(|dataset| is_uncaptured(dataset)) {
            return BTreeMap::new();
        }
        let Ok(tables) = self.datasets(DATASETS_CACHE_TIME).await else { return BTreeMap::new() };
        let table = |it: &Description| match it.reason() {
            None => (Readiness::Ready, None),
            // A reason may be a word of continuity.
            Some(reason) => (Readiness::Unfit, reason.parse::<Continuity>().ok()),
        };
        let described = tables.value.datasets.iter().filter(|it| is_uncaptured(&it.dataset));
        described.map(|it| (it.dataset.name.clone(), table(it))).collect()
    }

    /// Returns a consumer's state in each of its datasets, of a thousand at most.
    pub async fn consumer(&self, consumer: &ConsumerId) -> Result<Vec<ListedConsumer>, Error> {
        let mut lanes: Vec<ListedConsumer> = Vec::new();
        while lanes.len() < MAX_LANES {
            let last = lanes.last().map(|listed| listed.lag.dataset.clone());
            let after = last.as_deref().map(|dataset| Lane { consumer, dataset });
            let page = self.consumers(after, Some(consumer.clone()), LANES_PER_PAGE).await?;
            let is_last = page.len() < LANES_PER_PAGE as usize;
            lanes.extend(page);
            if is_last {
                break;
            }
        }
        if lanes.is_empty() { Err(Error::NoConsumer(consumer.clone())) } else { Ok(lanes) }
    }

    /// Removes a consumer from the lists, with its positions in all datasets that the caller may see.
    ///
    /// # Errors
    /// If there is no such consumer, or if one of its jobs has not ended.
    pub async fn remove_consumer(&self, consumer: &ConsumerId) -> Result<(), Error> {
        match with_timeout(self.store.remove_consumer(consumer, self.bounds.datasets.as_deref())).await? {
            ConsumerRemoval::Done => {
                tracing::info!(event = "consumer_removed", consumerId = consumer.as_str());
                self.origin.log_done(Action::RemoveConsumer, Some(consumer), None, None);
                Ok(())
            }
            ConsumerRemoval::Unknown => Err(Error::NoConsumer(consumer.clone())),
            ConsumerRemoval::Open => Err(Error::ConsumerOpen(consumer.clone())),
        }
    }

    /// Returns the age of the oldest change that a lane lacks, by the log or by the rows' times. Where neither tells
    /// it, it is the age of the last export, which is not less. It is unknown if the log has no change of a table that
    /// can't be read now, because nobody knows if triggers log its changes.
    fn behind(
        &self,
        lag: &ConsumerLag,
        history: &LaneHistory,
        logged: Option<&LoggedChanges>,
        now: DateTime<Utc>,
    ) -> Option<Duration> {
        let age = |since: DateTime<Utc>| (now - since).to_std().unwrap_or_default();
        let last_export = history.completed_at.map(age);
        match self.catalog.get(&lag.dataset)?.capture {
            Capture::None => last_export,
            _ if matches!(lag.table, Readiness::NotTracked | Readiness::Unfit) => last_export,
            _ if lag.continuity.is_some_and(|why| !why.keeps_live_rows() || why.is_manual()) => last_export,
            // Without a position in the log, the table was empty at the last export.
            capture => match (capture, logged, lag.waiting) {
                (Capture::Triggers, Some(LoggedChanges { exist: true, age, .. }), _) => *age,
                (Capture::Triggers, Some(_), _) if lag.table == Readiness::Unknown => None,
                (Capture::Triggers, Some(_), _) | (_, _, Waiting::Nothing) => Some(Duration::ZERO),
                (_, _, Waiting::Since(at)) => Some(age(at)),
                (_, _, Waiting::Unknown) => last_export,
            },
        }
    }

    /// Returns true if the consumer of an accepted job had no watermark and no job before it that the caller may see.
    pub async fn is_new_consumer(&self, job: &Job) -> Result<bool, Error> {
        let Some(consumer) = job.consumer() else { return Ok(false) };
        if job.exports.iter().any(|export| export.order != Some(1)) {
            return Ok(false);
        }
        with_timeout(self.store.is_new_consumer(consumer, job.id(), self.bounds.datasets.as_deref())).await
    }

    /// Returns the evidence that each lane and its marker at the destination have.
    async fn evidence(&self, lanes: &[Lane<'_>]) -> Result<Vec<LaneEvidence>, Error> {
        let database = with_timeout(self.store.database()).await?;
        let files: Vec<_> = lanes.iter().map(|lane| MarkerFile::new(&database, *lane)).collect();
        let read = self.destination.lane_markers(&files);
        let markers: Vec<Option<Marker>> = match tokio::time::timeout(MARKERS_TIMEOUT, read).await {
            Ok(Ok(markers)) => markers,
            Ok(Err(_)) | Err(_) => vec![None; lanes.len()],
        };
        let lanes: Vec<_> = lanes.iter().copied().map(Some).zip(markers.iter().map(Option::as_ref)).collect();
        with_timeout(self.store.evidence(&lanes)).await
    }

    /// Returns the states of consumers by their tables. If reads take long, returns the results of earlier ones, up to
    /// a minute old. A state is unknown if its table can't be read now, or if no read of it has ended in time.
    async fn lags(&self, positions: &[ConsumerPosition]) -> Vec<CachedRead<ConsumerLag>> {
        let datasets: BTreeSet<_> = positions.iter().map(|position| &*position.dataset).collect();
        let known = self.catalog.iter().filter(|dataset| datasets.contains(&*dataset.name));
        // Without capture, nobody knows the changes.
        let known = known.filter(|dataset| dataset.capture != Capture::None);
        let reads = known.map(|dataset| async move {
            let lanes = positions.iter().filter(|position| position.dataset == dataset.name);
            let consumers: Vec<_> = lanes.clone().map(|position| position.consumer.clone()).collect();
            // A result from before a position was saved or removed is of no use.
            let lanes = lanes.map(|position| (position.consumer.clone(), position.is_saved)).collect();
            let read = self.clone().read_lags(Arc::clone(dataset), consumers);
            let key = (dataset.name.clone(), lanes);
            let lags = self.cached.lags.get(key, Duration::ZERO, None, read);
            (dataset, tokio::time::timeout(COUNTING_TIMEOUT, lags).await)
        });
        let (read, mut tables) = tokio::join!(join_all(reads), self.tables_without_capture(&datasets));
        let (mut found, mut unread) = (HashMap::new(), Vec::new());
        for (dataset, lags) in read {
            let error = match lags {
                Ok(Ok(CachedRead { value, as_of })) => {
                    let lane = |lag: &ConsumerLag| (lag.consumer.clone(), lag.dataset.clone());
                    found.extend(value.into_iter().map(|value| (lane(&value), CachedRead { value, as_of })));
                    continue;
                }
                Ok(Err(error)) => {
                    tables.insert(dataset.name.clone(), after_failed_read(&error));
                    chain(&*error)
                }
                Err(_) => "no answer in time".to_owned(),
            };
            unread.push((dataset, error));
        }
        if let Some((dataset, error)) = unread.first() {
            tracing::warn!(event = "table_unreadable", dataset = dataset.name, error, tables = unread.len());
        }
        let unknown = |ConsumerPosition { consumer, dataset, last_exported_at, .. }: &ConsumerPosition| {
            let (table, continuity) = tables.get(dataset).copied().unwrap_or((Readiness::Unknown, None));
            let value = ConsumerLag {
                consumer: consumer.to_string(),
                dataset: dataset.clone(),
                last_exported_at: *last_exported_at,
                table,
                waiting: Waiting::Unknown,
                continuity,
            };
            CachedRead { value, as_of: Utc::now() }
        };
        let lag = |position: &ConsumerPosition| {
            let lane = (position.consumer.to_string(), position.dataset.clone());
            found.remove(&lane).unwrap_or_else(|| unknown(position))
        };
        positions.iter().map(lag).collect()
    }

    /// Returns the use of the change log by lanes. Without an answer, the list still has the rest.
    async fn log_use(&self, consumers: &[&str], datasets: &[&str]) -> Arc<Vec<LogUse>> {
        let lanes: Vec<_> =
            consumers.iter().zip(datasets).map(|(id, name)| ((*id).to_owned(), (*name).to_owned())).collect();
        let (service, of_lanes) = (self.clone(), lanes.clone());
        let read = async move {
            let _permit = service.lag_reads.acquire().await;
            let (ids, names): (Vec<_>, Vec<_>) = of_lanes.iter().map(|(id, name)| (id.as_str(), name.as_str())).unzip();
            on_table(service.source.log_use(service.log_max_bytes, &ids, &names)).await.map(Arc::new)
        };
        match self.cached.log_use.get(lanes, Duration::ZERO, None, read).await {
            Ok(read) => read.value,
            Err(error) => {
                tracing::warn!(event = "log_use_unknown", error = chain(&*error));
                Arc::default()
            }
        }
    }

    /// Reads the states of these consumers of a dataset, when fewer than [`MAX_LAG_READS`] other reads go on.
    async fn read_lags(self, dataset: Arc<Dataset>, consumers: Vec<ConsumerId>) -> Result<Vec<ConsumerLag>, Error> {
        let _permit = self.lag_reads.acquire().await;
        let lanes: Vec<_> = consumers.iter().map(|consumer| Lane { consumer, dataset: &dataset.name }).collect();
        let evidence = self.evidence(&lanes).await?;
        let consumers: Vec<_> = consumers.iter().map(ConsumerId::as_str).zip(evidence).collect();
        on_table(self.source.lags(&dataset, &consumers)).await
    }

    /// Deletes a consumer's watermark, if there is one.
    ///
    /// The dataset may be missing from the catalog. A watermark prevents the cleanup of the change log, so it must be
    /// deletable.
    ///
    /// # Errors
    /// If an export of the consumer is being committed.
    pub async fn forget_watermark(&self, lane: Lane<'_>) -> Result<(), Error> {
        if !is_dataset_name(lane.dataset) {
            self.dataset(lane.dataset)?;
        }
        match with_timeout(self.store.forget_watermark(lane)).await? {
            WatermarkRemoval::Done => {
                let (consumer, dataset) = (lane.consumer.as_str(), lane.dataset);
                tracing::info!(event = "watermark_deleted", consumerId = consumer, dataset);
                self.origin.log_done(Action::DeleteWatermark, Some(lane.consumer), Some(dataset), None);
                Ok(())
            }
            WatermarkRemoval::Committing => Err(Error::Committing),
        }
    }
}

/// Returns the state of a table of which a read has failed, and the word of continuity that its next export will have.
fn after_failed_read(error: &Error) -> (Readiness, Option<Continuity>) {
    match error {
        Error::Mismatch(Faults(faults)) => {
            let is_unmasked = faults.iter().any(Fault::is_of_removed_mask);
            (Readiness::Unfit, is_unmasked.then_some(Continuity::MaskRemoved))
        }
        Error::NotReadable(_) => (Readiness::Unfit, None),
        _ => (Readiness::Unknown, None),
    }
}
