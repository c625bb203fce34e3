//! Where consumers stand, and the watermarks that somebody sets by hand.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::dataset::Dataset;
use crate::dataset::catalog::is_name;
use crate::job::marker::Marker;
use crate::job::{ConsumerId, Job};
use crate::service::deadline::{on_table, with_timeout};
use crate::service::{COUNTING_TIMEOUT, Error, Service};
use crate::source;
use crate::store::watermarks::{ConsumerPosition, Written};
use crate::telemetry::chain;
use crate::watermark::{ConsumerLag, Waiting, Watermark};

/// How many changes are looked through for a page, and for each dataset on it: of one, enough for 10,000 rows that changed once and
/// some that changed more often.
const CHANGES_OF_A_PAGE: u64 = 36_000;
const MOST_CHANGES: u64 = 15_000;
const FEWEST_CHANGES: u64 = 1_000;

/// How long the folder's markers are waited for. Without them a restore is told by the timeline alone.
const MARKERS_TIMEOUT: Duration = Duration::from_millis(500);

impl Service {
    /// Where a consumer stands.
    ///
    /// # Errors
    /// If it has no watermark.
    pub async fn watermark(&self, consumer: &ConsumerId, dataset: &str) -> Result<Watermark, Error> {
        let dataset = self.dataset(dataset)?;
        with_timeout(self.store.watermark(consumer, &dataset.name)).await?.ok_or(Error::NoWatermark)
    }

    /// Where consumers stand in datasets, in the order of their ids, those after `after` and, if that is said, of those `among`;
    /// each with its last job.
    ///
    /// # Errors
    /// If the database fails, or doesn't count in time.
    pub async fn consumers(
        &self,
        after: Option<(&ConsumerId, &str)>,
        among: Option<&[ConsumerId]>,
        limit: u32,
    ) -> Result<Vec<(ConsumerLag, Option<Job>)>, Error> {
        let places = with_timeout(self.store.places(after, among, limit)).await?;
        let standings = self.standings(&places).await?;
        let (ids, datasets): (Vec<_>, Vec<_>) =
            places.iter().map(|place| (place.consumer.as_str(), place.dataset.as_str())).unzip();
        let mut jobs = with_timeout(self.store.last_jobs(&ids, &datasets)).await?;
        let with_job = |standing: ConsumerLag| {
            let is_its =
                |job: &Job| job.consumer.as_ref() == Some(&standing.consumer) && job.dataset == standing.dataset;
            let job = jobs.iter().position(is_its).map(|at| jobs.swap_remove(at));
            (standing, job)
        };
        Ok(standings.into_iter().map(with_job).collect())
    }

    /// Where a consumer stands in a dataset, or would.
    ///
    /// # Errors
    /// If the table can't be read.
    pub async fn standing(&self, consumer: &ConsumerId, dataset: &Dataset) -> Result<ConsumerLag, Error> {
        let consumers = self.with_markers(dataset, &[consumer]).await?;
        let standings = on_table(self.source.lags(dataset, &consumers, MOST_CHANGES)).await?;
        standings.into_iter().next().ok_or(Error::NoWatermark)
    }

    /// What the folder says of a consumer's lane.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn marker(&self, consumer: &ConsumerId, dataset: &Dataset) -> Result<Option<Marker>, Error> {
        let marked = self.with_markers(dataset, &[consumer]).await?;
        Ok(marked.into_iter().next().and_then(|(_, marker)| marker))
    }

    /// Consumers with what the folder says of their lanes.
    async fn with_markers<'a>(
        &self,
        dataset: &Dataset,
        consumers: &[&'a ConsumerId],
    ) -> Result<Vec<(&'a str, Option<Marker>)>, Error> {
        let database = with_timeout(self.store.database()).await?;
        let (ids, name) = (consumers.iter().map(|id| (*id).clone()).collect::<Vec<_>>(), dataset.name.clone());
        let read = self.on_folder(move |folder| ids.iter().map(|id| folder.marker(&database, id, &name)).collect());
        let read = tokio::time::timeout(MARKERS_TIMEOUT, read).await;
        let markers: Vec<Option<Marker>> = match read {
            Ok(Ok(markers)) => markers,
            Ok(Err(_)) | Err(_) => vec![None; consumers.len()],
        };
        Ok(consumers.iter().map(|id| id.as_str()).zip(markers).collect())
    }

    /// Where consumers stand, seen from the tables. A table that can't be read hides nobody.
    async fn standings(&self, places: &[ConsumerPosition]) -> Result<Vec<ConsumerLag>, Error> {
        let mut seen = Vec::new();
        let datasets = places.iter().map(|place| &place.dataset).collect::<BTreeSet<_>>().len();
        for dataset in self.catalog.iter() {
            let of = places.iter().filter(|place| place.dataset == dataset.name);
            let consumers: Vec<_> = of.map(|place| &place.consumer).collect();
            if consumers.is_empty() {
                continue;
            }
            let consumers = self.with_markers(dataset, &consumers).await?;
            // Each has its share of the time: a table that is locked, or too large to count, hides no other one.
            let share = COUNTING_TIMEOUT / u32::try_from(datasets).unwrap_or(u32::MAX);
            let changes = (CHANGES_OF_A_PAGE / datasets as u64).clamp(FEWEST_CHANGES, MOST_CHANGES);
            let error = match tokio::time::timeout(share, self.source.lags(dataset, &consumers, changes)).await {
                Ok(Ok(standings)) => {
                    seen.extend(standings);
                    continue;
                }
                Ok(Err(error)) => Some(error),
                Err(_) => None,
            };
            let is_alone = datasets == 1 && !matches!(error, Some(source::Error::Mismatch(_)));
            if is_alone || matches!(error, Some(source::Error::Unavailable(_))) {
                return Err(Error::Table(error));
            }
            let error = error.map_or("no answer in time".to_owned(), |error| chain(&error));
            tracing::warn!(event = "table_unreadable", dataset = dataset.name, error);
        }
        let standing = |place: &ConsumerPosition| {
            let is_its = |seen: &ConsumerLag| seen.consumer == place.consumer && seen.dataset == place.dataset;
            seen.iter().position(is_its).map(|at| seen.swap_remove(at)).unwrap_or_else(|| ConsumerLag {
                consumer: place.consumer.clone(),
                dataset: place.dataset.clone(),
                last_exported_at: place.last_exported_at,
                rows_waiting: Waiting::Unknown,
                continuity: None,
            })
        };
        Ok(places.iter().map(standing).collect())
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
            Written::Done => Ok(watermark),
            Written::Committing => Err(Error::Committing),
        }
    }

    /// Forgets a consumer's watermark, if it has one, also of a dataset that there is no more: it holds the change log.
    ///
    /// # Errors
    /// If an export of that consumer is being committed.
    pub async fn forget_watermark(&self, consumer: &ConsumerId, dataset: &str) -> Result<(), Error> {
        if !is_name(dataset) {
            return Err(Error::NoDataset(self.catalog.names()));
        }
        match with_timeout(self.store.forget_watermark(consumer, dataset)).await? {
            Written::Done => Ok(()),
            Written::Committing => Err(Error::Committing),
        }
    }
}
