//! Where consumers stand, and the watermarks that somebody sets by hand.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::dataset::Dataset;
use crate::dataset::name::is_name;
use crate::job::lane::{Lane, Unacknowledged};
use crate::job::marker::Marker;
use crate::job::{ConsumerId, Job};
use crate::service::deadline::{on_table, with_timeout};
use crate::service::{COUNTING_TIMEOUT, Error, Service};
use crate::sink::{Destination, MarkerFile};
use crate::source;
use crate::store::watermarks::{ConsumerPosition, WatermarkEdit};
use crate::telemetry::chain;
use crate::watermark::{ConsumerLag, Waiting, Watermark};

/// How many changes are read for a page, and for each dataset on it: for one dataset, enough for 10,000 rows that
/// changed once and some that changed more often.
const CHANGES_OF_A_PAGE: u64 = 36_000;
const MOST_CHANGES: u64 = 15_000;
const FEWEST_CHANGES: u64 = 1_000;

/// How long reading the folder's markers may take. Without markers a restore is told by the timeline alone.
const MARKERS_TIMEOUT: Duration = Duration::from_millis(500);

/// A consumer in a dataset, as a list shows it.
#[derive(Clone, Debug)]
pub struct ListedConsumer {
    /// Where it stands.
    pub lag: ConsumerLag,
    /// Its last job.
    pub last_job: Option<Job>,
    /// What it has yet to acknowledge; `None`: it has never acknowledged an export.
    pub unacknowledged: Option<Unacknowledged>,
}

impl Service {
    /// Where a consumer stands.
    ///
    /// # Errors
    /// If it has no watermark.
    pub async fn watermark(&self, lane: Lane<'_>) -> Result<Watermark, Error> {
        self.dataset(lane.dataset)?;
        with_timeout(self.store.watermark(lane)).await?.ok_or(Error::NoWatermark)
    }

    /// Where consumers stand in datasets, in the order of their ids; those after `after`, and of the consumers
    /// `among`, where these are given.
    pub async fn consumers(
        &self,
        after: Option<Lane<'_>>,
        among: Option<&[ConsumerId]>,
        limit: u32,
    ) -> Result<Vec<ListedConsumer>, Error> {
        let positions = with_timeout(self.store.positions(after, among, limit)).await?;
        let lags = self.lags(&positions).await?;
        let (ids, datasets): (Vec<_>, Vec<_>) =
            positions.iter().map(|position| (position.consumer.as_str(), position.dataset.as_str())).unzip();
        let mut jobs = with_timeout(self.store.last_jobs(&ids, &datasets)).await?;
        let mut unacknowledged = with_timeout(self.store.unacknowledged(&ids, &datasets)).await?;
        let listed = |lag: ConsumerLag| {
            let is_its = |job: &Job| job.consumer.as_ref() == Some(&lag.consumer) && job.dataset == lag.dataset;
            let last_job = jobs.iter().position(is_its).map(|at| jobs.swap_remove(at));
            let unacknowledged = unacknowledged.remove(&(lag.consumer.clone(), lag.dataset.clone()));
            ListedConsumer { lag, last_job, unacknowledged }
        };
        Ok(lags.into_iter().map(listed).collect())
    }

    /// Where a consumer stands in a dataset, also before its first export.
    ///
    /// # Errors
    /// If the table can't be read.
    pub async fn lag(&self, consumer: &ConsumerId, dataset: &Dataset) -> Result<ConsumerLag, Error> {
        let consumers = self.with_markers(dataset, &[consumer]).await?;
        let lags = on_table(self.source.lags(dataset, &consumers, MOST_CHANGES)).await?;
        lags.into_iter().next().ok_or(Error::NoWatermark)
    }

    /// The folder's marker of a consumer's lane.
    pub async fn marker(&self, consumer: &ConsumerId, dataset: &Dataset) -> Result<Option<Marker>, Error> {
        let marked = self.with_markers(dataset, &[consumer]).await?;
        Ok(marked.into_iter().next().and_then(|(_, marker)| marker))
    }

    /// Consumers with the folder's markers of their lanes.
    async fn with_markers<'a>(
        &self,
        dataset: &Dataset,
        consumers: &[&'a ConsumerId],
    ) -> Result<Vec<(&'a str, Option<Marker>)>, Error> {
        let database = with_timeout(self.store.database()).await?;
        let lanes = consumers.iter().map(|consumer| Lane { consumer, dataset: &dataset.name });
        let files: Vec<_> = lanes.map(|lane| MarkerFile::new(&database, lane)).collect();
        let read = self.destination.lane_markers(&files);
        let markers: Vec<Option<Marker>> = match tokio::time::timeout(MARKERS_TIMEOUT, read).await {
            Ok(Ok(markers)) => markers,
            Ok(Err(_)) | Err(_) => vec![None; consumers.len()],
        };
        Ok(consumers.iter().map(|id| id.as_str()).zip(markers).collect())
    }

    /// Where consumers stand, seen from the tables. Of a table that can't be read a consumer's waiting rows are
    /// unknown.
    async fn lags(&self, positions: &[ConsumerPosition]) -> Result<Vec<ConsumerLag>, Error> {
        let mut found = Vec::new();
        let datasets = positions.iter().map(|position| &position.dataset).collect::<BTreeSet<_>>().len();
        for dataset in self.catalog.iter() {
            let its = positions.iter().filter(|position| position.dataset == dataset.name);
            let consumers: Vec<_> = its.map(|position| &position.consumer).collect();
            if consumers.is_empty() {
                continue;
            }
            let consumers = self.with_markers(dataset, &consumers).await?;
            // Each table has its share of the time, so that one that is locked, or too large to count, takes none from
            // the others.
            let share = COUNTING_TIMEOUT / u32::try_from(datasets).unwrap_or(u32::MAX);
            let changes = (CHANGES_OF_A_PAGE / datasets as u64).clamp(FEWEST_CHANGES, MOST_CHANGES);
            let error = match tokio::time::timeout(share, self.source.lags(dataset, &consumers, changes)).await {
                Ok(Ok(lags)) => {
                    found.extend(lags);
                    continue;
                }
                Ok(Err(error)) => Some(error),
                Err(_) => None,
            };
            let is_lasting = matches!(
                error,
                Some(
                    source::Error::Mismatch(_)
                        | source::Error::CantPlan(_)
                        | source::Error::NotReadable(_)
                        | source::Error::Denied { .. }
                )
            );
            if (datasets == 1 && !is_lasting) || matches!(error, Some(source::Error::Unavailable(_))) {
                return Err(Error::Table(error));
            }
            let error = error.map_or("no answer in time".to_owned(), |error| chain(&error));
            tracing::warn!(event = "table_unreadable", dataset = dataset.name, error);
        }
        let lag = |position: &ConsumerPosition| {
            let is_its = |lag: &ConsumerLag| lag.consumer == position.consumer && lag.dataset == position.dataset;
            found.iter().position(is_its).map(|at| found.swap_remove(at)).unwrap_or_else(|| ConsumerLag {
                consumer: position.consumer.clone(),
                dataset: position.dataset.clone(),
                last_exported_at: position.last_exported_at,
                rows_waiting: Waiting::Unknown,
                continuity: None,
            })
        };
        Ok(positions.iter().map(lag).collect())
    }

    /// Sets a consumer's watermark by hand.
    ///
    /// # Errors
    /// If an export of that consumer is being committed, or the dataset has no times.
    pub async fn set_watermark(
        &self,
        consumer: ConsumerId,
        dataset: &str,
        time: DateTime<Utc>,
    ) -> Result<Watermark, Error> {
        let dataset = self.dataset(dataset)?;
        if dataset.updated_at.is_none() {
            return Err(Error::NoTimes(dataset.name.clone()));
        }
        let watermark = Watermark { consumer, dataset: dataset.name.clone(), last_exported_at: time };
        match with_timeout(self.store.set_watermark(&watermark)).await? {
            WatermarkEdit::Done => {
                tracing::info!(
                    event = "watermark_set",
                    consumerId = watermark.consumer.as_str(),
                    dataset = watermark.dataset,
                    lastExportedAt = %time.to_rfc3339(),
                );
                Ok(watermark)
            }
            WatermarkEdit::Committing => Err(Error::Committing),
        }
    }

    /// Forgets a consumer's watermark, if it has one, also of a dataset that is not in the catalog any more: the
    /// watermark holds the change log.
    ///
    /// # Errors
    /// If an export of that consumer is being committed.
    pub async fn forget_watermark(&self, lane: Lane<'_>) -> Result<(), Error> {
        if !is_name(lane.dataset) {
            self.dataset(lane.dataset)?;
        }
        match with_timeout(self.store.forget_watermark(lane)).await? {
            WatermarkEdit::Done => {
                let (consumer, dataset) = (lane.consumer.as_str(), lane.dataset);
                tracing::info!(event = "watermark_deleted", consumerId = consumer, dataset);
                Ok(())
            }
            WatermarkEdit::Committing => Err(Error::Committing),
        }
    }
}
