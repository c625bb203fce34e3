//! Operations on batches: submit, get, wait, cancel and retry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::audit::Action;
use crate::dataset::Description;
use crate::job::batch::{Batch, BatchRequest, MOST_MEMBERS, Omitted};
use crate::job::{After, Bounds, ConsumerId, IdempotencyKey, JobId, Request, Status};
use crate::service::deadline::with_timeout;
use crate::service::followers::Subscriber;
use crate::service::{DATASETS_CACHE_TIME, Error, SeenTables, Service};
use crate::store::jobs::Cancelled;
use crate::trace::TraceParent;

/// The datasets of a batch, as a client names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedDatasets {
    /// Each dataset that is ready and that the caller may export.
    All,
    Listed(Vec<String>),
}

/// A client's request for a batch.
#[derive(Clone, Debug)]
pub struct BatchOrder {
    /// The request for each export, without a dataset and without `after`.
    pub of_each: Request,
    pub datasets: NamedDatasets,
    /// True if a member that needs a full export becomes one.
    pub heals: bool,
    /// For datasets, the export that the caller loaded last.
    pub after: BTreeMap<String, After>,
}

impl BatchOrder {
    fn request(&self, dataset: String) -> Request {
        Request { after: self.after.get(&dataset).cloned(), dataset, ..self.of_each.clone() }
    }

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
        let Request { export_type, encoding, max_file_bytes, skip_empty, .. } = &self.of_each;
        json!({
            "datasets": datasets, "exportType": export_type.as_str(), "format": encoding.format.as_str(),
            "compression": encoding.compression, "maxFileBytes": max_file_bytes, "skipEmpty": skip_empty,
            "heal": self.heals, "after": after,
        })
    }
}

impl Service {
    /// Accepts a batch. Its jobs are durable and survive a crash of this process.
    ///
    /// A repeated idempotency key returns the batch created by the first request.
    ///
    /// # Errors
    ///
    /// As [`submit`](Service::submit), for any of the datasets. If no dataset is ready.
    pub async fn submit_batch(&self, order: &BatchOrder) -> Result<Batch, Error> {
        let mut request = BatchRequest {
            request: order.as_sent(&self.bounds),
            export_type: order.of_each.export_type,
            heals: order.heals,
            members: Vec::new(),
            left_out: Vec::new(),
            retry_of: None,
        };
        if let Some(before) = self.batch_sent_before(order, &request).await? {
            return Ok(before);
        }
        (request.members, request.left_out) = match &order.datasets {
            NamedDatasets::Listed(names) => (names.clone(), Vec::new()),
            NamedDatasets::All => self.ready_datasets(order).await?,
        };
        request.members.sort();
        if request.members.len() > MOST_MEMBERS {
            return Err(Error::TooManyMembers(request.members.len()));
        }
        let is_known = |name: &&String| {
            request.members.contains(name) || request.left_out.iter().any(|omitted| omitted.dataset == **name)
        };
        if let Some(other) = order.after.keys().find(|name| !is_known(name)) {
            return Err(Error::AfterUnknown(other.clone()));
        }
        let member = |name: &String| Request {
            export_type: self.catalog.healed_type(name, request.export_type, request.heals),
            ..order.request(name.clone())
        };
        let requests: Vec<_> = request.members.iter().map(member).collect();
        self.check_members(&requests).await?;
        self.submit_members(requests, request).await
    }

    /// Accepts a batch with the parameters of a failed or cancelled one.
    ///
    /// # Errors
    ///
    /// If the batch does not exist or has another status; and as [`submit_batch`](Service::submit_batch).
    pub async fn retry_batch(
        &self,
        id: JobId,
        key: Option<IdempotencyKey>,
        trace: Option<TraceParent>,
    ) -> Result<Batch, Error> {
        let batch = self.batch(id).await?;
        let status = batch.status();
        if !matches!(status, Status::Failed | Status::Cancelled) {
            return Err(Error::NotToRetry(status));
        }
        let again = |name: &String| {
            let before = batch.jobs.iter().find(|job| job.dataset == *name);
            let request = match before {
                Some(job) => Request::from_job(job),
                // Retention has removed it.
                None => Request { dataset: name.clone(), after: None, ..Request::from_job(&batch.jobs[0]) },
            };
            let (export_type, retry_of) = (
                self.catalog.healed_type(name, batch.request.export_type, batch.request.heals),
                before.map(|job| job.id),
            );
            Request { export_type, retry_of, key: key.clone(), trace, ..request }
        };
        let requests: Vec<_> = batch.request.members.iter().map(again).collect();
        self.check_members(&requests).await?;
        self.submit_members(requests, BatchRequest { retry_of: Some(id), ..batch.request }).await
    }

    async fn submit_members(&self, requests: Vec<Request>, request: BatchRequest) -> Result<Batch, Error> {
        let (jobs, is_new) = self.submit_all(&requests, Some(&request)).await?;
        let batch = Batch { id: jobs[0].id, jobs, request };
        if is_new {
            let retry_of = batch.request.retry_of.map(tracing::field::display);
            tracing::info!(
                event = "batch_submitted",
                batchId = %batch.id,
                consumerId = requests[0].consumer.as_ref().map(ConsumerId::as_str),
                exportType = %batch.request.export_type,
                members = batch.jobs.len(),
                retryOf = retry_of,
            );
        }
        Ok(batch)
    }

    /// Returns the batch of an earlier request with the same idempotency key, if it asked for the same.
    async fn batch_sent_before(&self, order: &BatchOrder, asked: &BatchRequest) -> Result<Option<Batch>, Error> {
        if order.of_each.key.is_none() {
            return Ok(None);
        }
        let before = with_timeout(self.store.sent_before(&order.of_each)).await?;
        let Some(id) = before.and_then(|job| job.batch) else { return Ok(None) };
        match self.batch(id).await {
            Ok(batch) => Ok(Some(batch).filter(|batch| batch.request.is_repeated_by(asked))),
            Err(Error::NoBatch) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the datasets that are ready and that the caller may export, and those that are not ready.
    async fn ready_datasets(&self, order: &BatchOrder) -> Result<(Vec<String>, Vec<Omitted>), Error> {
        let seen = self.seen(Duration::ZERO).await?;
        let (ready, left_out) = self.catalog.split_ready(&seen.datasets, order.of_each.export_type, order.heals);
        if !ready.is_empty() {
            return Ok((ready, left_out));
        }
        let have_full_exports = left_out.iter().any(|omitted| omitted.reason == "full_only");
        Err(Error::NothingReady(match have_full_exports {
            true => "those with `capture = \"none\"` have full exports alone, which `heal` makes in place of others",
            false => "GET /datasets has the reasons",
        }))
    }

    /// Checks that the tables of these requests can be exported. Takes as many statements for many as for few, if all
    /// of them can.
    async fn check_members(&self, requests: &[Request]) -> Result<(), Error> {
        let seen = self.seen(DATASETS_CACHE_TIME).await?;
        let ready: Vec<&str> = seen
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

    async fn seen(&self, fresh: Duration) -> Result<Arc<SeenTables>, Error> {
        Ok(self.datasets(fresh).await.map_err(Error::Look)?.value)
    }

    /// Returns true if the caller may see all exports of a batch, also those whose jobs are removed.
    fn allows(&self, batch: &Batch) -> bool {
        batch.request.members.iter().all(|name| self.bounds.allow_dataset(name))
            && batch.jobs.iter().all(|job| self.bounds.allow(job))
    }

    /// Returns a batch.
    ///
    /// # Errors
    ///
    /// If there is no batch with this id, or if the caller may not see all of its exports.
    pub async fn batch(&self, id: JobId) -> Result<Batch, Error> {
        let _ = self.origin.job.set(id);
        let batch = with_timeout(self.store.batch(id)).await?.filter(|batch| self.allows(batch));
        let mut batch = batch.ok_or(Error::NoBatch)?;
        // Another caller may have asked for the batch.
        batch.request.left_out.retain(|omitted| self.bounds.allow_dataset(&omitted.dataset));
        Ok(batch)
    }

    /// Returns a batch when it has ended or `timeout` has passed.
    ///
    /// # Errors
    ///
    /// As [`ended_job`](Service::ended_job).
    pub async fn ended_batch(&self, id: JobId, timeout: Duration, subscriber: Subscriber) -> Result<Batch, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let batch = self.batch(id).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            match batch.open_member() {
                Some(open) if !left.is_zero() && !self.stopping.is_cancelled() => {
                    match self.ended_job(open.id, left, subscriber.clone()).await {
                        // A skipped export of a lane is removed when the lane has another one.
                        Ok(_) | Err(Error::NoJob) => {}
                        Err(error) => return Err(error),
                    }
                }
                _ => return Ok(batch),
            }
        }
    }

    /// Cancels a batch, or asks its worker to stop. The returned flag is true if the batch was already cancelled.
    ///
    /// # Errors
    ///
    /// If the batch does not exist, is being committed, or has ended otherwise.
    pub async fn cancel_batch(&self, id: JobId) -> Result<(Batch, bool), Error> {
        let before = self.batch(id).await?;
        let is_already = match with_timeout(self.store.cancel_batch(id)).await? {
            Cancelled::Asked(_) => false,
            Cancelled::Already(_) => true,
            Cancelled::Committing => return Err(Error::Committing),
            Cancelled::Ended(status) => return Err(Error::Ended(status)),
            Cancelled::Unknown | Cancelled::OfBatch(_) => return Err(Error::NoBatch),
        };
        if !is_already {
            before.jobs.iter().for_each(|job| self.origin.log_job(Action::Cancel, job));
            if before.status() == Status::Processing {
                tracing::info!(event = "cancel_requested", batchId = %id);
            }
        }
        Ok((self.batch(id).await?, is_already))
    }
}
