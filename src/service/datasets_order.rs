//! Requests for exports of several datasets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::job::datasets::{DatasetsRequest, MOST_DATASETS, Omitted};
use crate::job::{Bounds, Job, Request};
use crate::service::{DATASETS_CACHE_TIME, Error, Service, TableStates};
use cdc_dataset::Description;
use cdc_manifest::After;

/// The datasets of a job, as a client names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedDatasets {
    /// Each dataset that is ready and that the caller may export.
    All,
    Listed(Vec<String>),
}

/// A client's request for exports of several datasets.
#[derive(Clone, Debug)]
pub struct DatasetsOrder {
    /// The request for each export, without a dataset and without `after`.
    pub of_each: Request,
    pub datasets: NamedDatasets,
    /// For datasets, the export that the caller loaded last.
    pub after: BTreeMap<String, After>,
}

impl DatasetsOrder {
    /// Returns what a repetition must have in common with this request.
    fn as_sent(&self, bounds: &Bounds) -> Value {
        let after = |after: &After| match after {
            After::Nothing => Value::Null,
            After::Export { job, .. } => json!(job),
        };
        let after: BTreeMap<_, _> = self.after.iter().map(|(dataset, loaded)| (dataset, after(loaded))).collect();
        let datasets = match &self.datasets {
            NamedDatasets::All => json!({ "*": bounds.datasets }),
            NamedDatasets::Listed(names) => json!(names),
        };
        let Request { export_type, encoding, max_file_bytes, skip_empty, heals, .. } = &self.of_each;
        json!({
            "datasets": datasets, "exportType": export_type.as_str(), "format": encoding.format.as_str(),
            "compression": encoding.compression, "maxFileBytes": max_file_bytes, "skipEmpty": skip_empty,
            "heal": heals, "after": after,
        })
    }
}

impl Service {
    /// Accepts a job of several datasets. The job is durable and survives a crash of this process.
    ///
    /// A repeated idempotency key returns the job created by the first request.
    ///
    /// # Errors
    /// As [`submit`](Service::submit), for any of the datasets. If no dataset is ready, or more than a job may have.
    pub async fn submit_datasets(&self, order: &DatasetsOrder) -> Result<Job, Error> {
        let DatasetsOrder { of_each, datasets, after } = order;
        let mut requested = DatasetsRequest {
            request: order.as_sent(&self.bounds),
            export_type: of_each.export_type,
            datasets: Vec::new(),
            left_out: Vec::new(),
        };
        // Other datasets may be ready now than when the request was sent before.
        if let Some(before) = self.sent_before(of_each, Some(&requested)).await? {
            return Ok(before);
        }
        (requested.datasets, requested.left_out) = match datasets {
            NamedDatasets::Listed(names) => (names.clone(), Vec::new()),
            NamedDatasets::All => self.ready_datasets(of_each).await?,
        };
        requested.datasets.sort();
        if requested.datasets.len() > MOST_DATASETS {
            return Err(Error::TooManyDatasets(requested.datasets.len()));
        }
        let is_known = |name: &&String| {
            requested.datasets.contains(name) || requested.left_out.iter().any(|omitted| omitted.dataset == **name)
        };
        if let Some(other) = after.keys().find(|name| !is_known(name)) {
            return Err(Error::AfterUnknown(other.clone()));
        }
        let request = |name: &String| Request {
            dataset: name.clone(),
            export_type: self.catalog.healed_type(name, requested.export_type, of_each.heals),
            after: after.get(name).cloned(),
            ..of_each.clone()
        };
        let requests: Vec<_> = requested.datasets.iter().map(request).collect();
        self.check_all(&requests).await?;
        self.submit_checked(&requests, Some(&requested)).await
    }

    /// Returns the datasets that are ready and that the caller may export, and those that are not ready.
    async fn ready_datasets(&self, of_each: &Request) -> Result<(Vec<String>, Vec<Omitted>), Error> {
        let tables = self.tables(Duration::ZERO).await?;
        let (ready, left_out) = self.catalog.split_ready(&tables.datasets, of_each.export_type, of_each.heals);
        if !ready.is_empty() {
            return Ok((ready, left_out));
        }
        let have_full_exports = left_out.iter().any(|omitted| omitted.reason == "full_only");
        Err(Error::NothingReady(match have_full_exports {
            true => "those with `capture = \"none\"` have full exports alone, which `heal` makes in place of others",
            false => "GET /datasets has the reasons",
        }))
    }

    /// Checks that the tables of these requests can be exported. If all of them can, this takes as many statements for
    /// many tables as for few.
    pub(super) async fn check_all(&self, requests: &[Request]) -> Result<(), Error> {
        let tables = self.tables(DATASETS_CACHE_TIME).await?;
        let ready: Vec<&str> = tables
            .datasets
            .iter()
            .filter(|described| described.reason().is_none())
            .map(|Description { dataset, .. }| dataset.name.as_str())
            .collect();
        for request in requests {
            let dataset = self.dataset(&request.dataset)?;
            if !ready.contains(&request.dataset.as_str()) || !dataset.allows(request.export_type) {
                self.check(dataset, request).await?;
            }
        }
        Ok(())
    }

    async fn tables(&self, fresh: Duration) -> Result<Arc<TableStates>, Error> {
        Ok(self.datasets(fresh).await.map_err(Error::Tables)?.value)
    }
}
