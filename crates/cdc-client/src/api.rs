//! The API of a service in this process or on another machine. Jobs and consumers have the form of the API's JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use http::{Method, header};
use http_body_util::BodyDataStream;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use crate::answer::{ApiAnswer, CallError, LocalService};
use crate::job_view::{ExportView, JobOfDatasets};
use crate::observer::Observer;
use crate::remote::RemoteService;
use crate::request::ExportRequest;
use crate::{About, Error};
use cdc_manifest::{ConsumerId, JobId, Lane, Manifest, PublicKey};
use pg_rows::export_type::ExportType;

pub const PAGE_ITEMS: u32 = 200;
/// The number of jobs that one call requests of a long list. Each may have the exports of a thousand datasets.
const PAGE_JOBS: u32 = 5;
/// The time between two polls of a job in this process.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The filter of a list for completed exports.
const COMPLETED: (&str, &str) = ("status", "completed");

#[derive(Clone)]
pub struct Api {
    transport: Arc<ApiTransport>,
    observer: Arc<dyn Observer>,
    /// If there are any, one of them must have signed each manifest.
    pub(super) keys: Arc<[PublicKey]>,
}

pub enum ApiTransport {
    InProcess(Box<dyn LocalService>),
    Http(RemoteService),
}

#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct RefusedExport {
    pub code: String,
    /// The open exports that must end before this one can be submitted.
    pub open: Vec<JobId>,
    text: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SubmittedJob {
    job_id: JobId,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ItemPage {
    items: Vec<Value>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
pub struct DatasetView {
    pub name: String,
    /// The way in which its changes are found. `None`: this is a table that a pattern matches, and no dataset.
    pub capture: Option<String>,
    /// True if an export could start now.
    pub ready: bool,
    /// The main reason why an export could not start now, as a word.
    pub reason: Option<String>,
    pub problems: Vec<String>,
}

fn call(method: Method, path: &str) -> Result<http::Request<String>, CallError> {
    Ok(http::Request::builder().method(method).uri(path).body(String::new())?)
}

impl Api {
    pub fn new(transport: ApiTransport, observer: Arc<dyn Observer>) -> Api {
        Api { transport: Arc::new(transport), observer, keys: Arc::default() }
    }

    /// Requires that one of these keys signed each manifest that is read. Without keys, manifests may be unsigned.
    pub fn requiring(self, keys: Vec<PublicKey>) -> Api {
        Api { keys: keys.into(), ..self }
    }

    /// Returns the same API with an observer of its own, for one of several datasets.
    pub fn observed_by(&self, observer: Arc<dyn Observer>) -> Api {
        Api { observer, ..self.clone() }
    }

    pub fn observer(&self) -> &dyn Observer {
        &*self.observer
    }

    /// Makes a call, and reads the answer with `read`. The call must be idempotent, because it may be sent twice.
    async fn call<T>(
        &self,
        call: http::Request<String>,
        read: impl AsyncFn(ApiAnswer) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        match &*self.transport {
            ApiTransport::InProcess(api) => {
                let response = api.call(call).await;
                read(ApiAnswer { server: "this process".to_owned(), response }).await
            }
            ApiTransport::Http(service) => service.call(&call, read).await,
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        self.call(call(Method::GET, path)?, ApiAnswer::json).await
    }

    /// Submits a job of these datasets for one consumer: their exports are read at one snapshot, and each is a full one
    /// where only that goes on.
    pub async fn submit_datasets(&self, request: &ExportRequest, datasets: &[&str]) -> Result<JobId, CallError> {
        let SubmittedJob { job_id } = self.call(request.call_for(datasets)?, ApiAnswer::json).await?;
        Ok(job_id)
    }

    pub(super) async fn job_of_datasets(&self, id: JobId) -> Result<JobOfDatasets, CallError> {
        self.get(&format!("/exports/{id}")).await
    }

    /// Reads a job whose request had `datasets` when the job ends, or when the poll interval has passed.
    pub(super) async fn poll_datasets(&self, id: JobId) -> Result<JobOfDatasets, CallError> {
        self.get(&format!("/exports/{id}?wait=5")).await
    }

    /// Waits until a job has ended, and so until each of its exports is published or has lost its file. Returns the
    /// number of each published export in its lane, by dataset. Warns if a file is lost.
    pub(super) async fn numbers_of_job(&self, id: JobId) -> Result<BTreeMap<String, u64>, Error> {
        let ended = self.ended_job(id).await.about(|| format!("job_incomplete: the job {id}"))?;
        if let Some(why) = ended.failure() {
            self.observer.notice(&format!("warning: {why}: the other exports of the job {id} are applied"));
        }
        Ok(ended.numbers())
    }

    pub async fn submit(&self, request: &ExportRequest) -> Result<JobId, Error> {
        match self.call(request.call()?, ApiAnswer::json).await {
            Ok(SubmittedJob { job_id }) => Ok(job_id),
            Err(error) => Err(self.refused_export(error)),
        }
    }

    /// Adds a line to a refusal for each export that comes before the refused one.
    fn refused_export(&self, error: CallError) -> Error {
        let mut text = error.to_string();
        let CallError::Refused { code, jobs, .. } = error else { return error.into() };
        let (option, mut open) = (self.server_option(), Vec::new());
        for job in jobs {
            let id = JobId::from(job.job_id);
            if &*job.status == "completed" {
                text += &format!("\n  cdc-export download {id}{option}");
            } else {
                text += &format!("\n  {id} is open");
                open.push(id);
            }
        }
        RefusedExport { code: code.to_string(), open, text }.into()
    }

    /// Reads an export of a job, as [`ExportView::from_job`] does.
    pub async fn export(&self, id: JobId, dataset: Option<&str>) -> Result<ExportView, Error> {
        ExportView::from_job(self.get(&format!("/exports/{id}")).await?, dataset)
    }

    /// Reads an export of a job when the job ends, or when the poll interval has passed.
    pub async fn poll(&self, id: JobId, dataset: Option<&str>) -> Result<ExportView, Error> {
        let wait = if self.observer.draws_progress() { 1 } else { 5 };
        let ended = async { ExportView::from_job(self.get(&format!("/exports/{id}?wait={wait}")).await?, dataset) };
        let present = async {
            sleep(POLL_INTERVAL).await;
            self.export(id, dataset).await
        };
        match &*self.transport {
            ApiTransport::InProcess(_) => tokio::select! { export = ended => export, export = present => export },
            ApiTransport::Http(_) => ended.await,
        }
    }

    /// Requests the cancellation of an export. Returns false if it has ended, or is being committed.
    pub async fn cancel(&self, id: JobId) -> Result<bool, Error> {
        match self.call(call(Method::POST, &format!("/exports/{id}/cancel"))?, ApiAnswer::accepted).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Acknowledges a published export and all exports before it in its lane as loaded.
    pub async fn ack(&self, id: JobId, dataset: &str) -> Result<(), Error> {
        let _: Value = self.call(call(Method::POST, &export_path(id, "ack", dataset))?, ApiAnswer::json).await?;
        Ok(())
    }

    pub(super) async fn newest_export(
        &self,
        lane: Lane<'_>,
        export_type: Option<ExportType>,
    ) -> Result<Option<ExportView>, Error> {
        let export_type = export_type.map(|export_type| ("exportType", export_type.as_str()));
        let filter: Vec<_> = export_type.into_iter().chain([COMPLETED]).collect();
        Ok(self.page(&lane_path(lane, &filter), Some(lane.dataset), 1, None).await?.0.into_iter().next())
    }

    /// Lists the oldest completed exports of a lane, oldest first: those of the last page. Reads the pages one at a
    /// time, so a long list takes no more memory than a short one.
    ///
    /// # Errors
    /// Also if the ids of the jobs don't descend: a page comes again, and the list has no end.
    pub(super) async fn oldest_exports(&self, lane: Lane<'_>) -> Result<Vec<ExportView>, Error> {
        let path = lane_path(lane, &[COMPLETED]);
        let (mut oldest, mut cursor, mut above) = (Vec::new(), None::<String>, None::<Uuid>);
        loop {
            let (exports, next) = self.page(&path, Some(lane.dataset), PAGE_JOBS, cursor.as_deref()).await?;
            for id in exports.iter().map(|export| export.job.id.as_uuid()) {
                if above.is_some_and(|above| id >= above) {
                    return Err(Error::refused("the list of exports repeats: the service doesn't list them in order"));
                }
                above = Some(id);
            }
            if !exports.is_empty() {
                oldest = exports;
            }
            match next {
                Some(_) if next == cursor => return Err(Error::refused("the list of exports repeats")),
                Some(_) => cursor = next,
                None => break,
            }
        }
        oldest.sort_by_key(|export| export.number);
        Ok(oldest)
    }

    /// Reads a page of a list of jobs. Returns the export of the dataset in each of them, and the cursor of the next
    /// page.
    async fn page(
        &self,
        path: &str,
        dataset: Option<&str>,
        limit: u32,
        cursor: Option<&str>,
    ) -> Result<(Vec<ExportView>, Option<String>), Error> {
        let mut path = format!("{path}&limit={limit}");
        if let Some(cursor) = cursor {
            path.extend(["&cursor=", &form_urlencoded::byte_serialize(cursor.as_bytes()).collect::<String>()]);
        }
        let ItemPage { items, next_cursor } = self.get(&path).await?;
        if items.is_empty() && next_cursor.is_some() {
            return Err(Error::refused("the list of exports has an empty page, and no end"));
        }
        let exports = items.into_iter().map(|job| ExportView::from_job(job, dataset));
        Ok((exports.collect::<Result<_, _>>()?, next_cursor))
    }

    pub async fn newest_job(&self, consumer: &ConsumerId) -> Result<Option<Uuid>, CallError> {
        let ItemPage { items, .. } = self.get(&format!("/exports?consumer={consumer}&limit=1")).await?;
        Ok(items.first().and_then(|job| job["jobId"].as_str()?.parse().ok()))
    }

    /// Returns a job of a consumer that is committed, and has a file without its final name.
    pub(super) async fn unpublished_job(&self, consumer: &str) -> Result<Option<String>, CallError> {
        let path = path_with("/exports", &[("consumer", consumer), ("status", "processing"), ("limit", "200")]);
        let open: ItemPage = self.get(&path).await?;
        let is_committed = |export: &Value| export["phase"] == "publishing";
        let is_unpublished =
            |job: &&Value| is_committed(job) || job["exports"].as_array().into_iter().flatten().any(is_committed);
        Ok(open.items.iter().find(is_unpublished).and_then(|job| job["jobId"].as_str().map(str::to_owned)))
    }

    /// Lists the datasets and the other tables that a pattern matches, as JSON.
    pub async fn dataset_items(&self) -> Result<Vec<Value>, Error> {
        let all: ItemPage = self.get("/datasets").await?;
        Ok(all.items)
    }

    /// Lists the exports of a lane that were published after `after`, oldest first: at most [`PAGE_ITEMS`] of them.
    pub async fn published_after(&self, lane: Lane<'_>, after: JobId) -> Result<Vec<ExportView>, Error> {
        let path = lane_path(lane, &[("after", &after.to_string())]);
        Ok(self.page(&path, Some(lane.dataset), PAGE_ITEMS, None).await?.0)
    }

    pub async fn datasets(&self) -> Result<Vec<DatasetView>, Error> {
        Ok(self.dataset_items().await?.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?)
    }

    /// Returns the default dataset: the only one, or `users`.
    pub async fn implied_dataset(&self) -> Result<String, Error> {
        let datasets = self.datasets().await?.into_iter().filter(|it| it.capture.is_some());
        let names: Vec<String> = datasets.map(|dataset| dataset.name).collect();
        match names.as_slice() {
            [only] => Ok(only.clone()),
            _ if names.iter().any(|name| name == "users") => Ok("users".to_owned()),
            _ => Err(Error::Usage(format!("--dataset: name one of these: {}", names.join(", ")))),
        }
    }

    /// Reads the manifest of a consumer's completed export, and checks its content and its signature.
    pub async fn manifest(&self, id: JobId, dataset: &str) -> Result<Manifest, Error> {
        let manifest: Value = self.get(&export_path(id, "manifest", dataset)).await?;
        let about = || format!("the manifest of {id}");
        let manifest = Manifest::read(manifest.to_string().as_bytes()).about(about)?;
        manifest.check_content().and_then(|()| manifest.check_signature(&self.keys)).about(about)?;
        Ok(manifest)
    }

    /// Returns the `--server` option by which another command reaches the same service.
    pub fn server_option(&self) -> String {
        match &*self.transport {
            ApiTransport::InProcess(_) => String::new(),
            ApiTransport::Http(service) => format!(" --server {}", service.address()),
        }
    }

    /// Returns the place that explains a word on the service's page. A service in this process has none.
    pub fn symptom(&self, word: &str) -> Option<String> {
        match &*self.transport {
            ApiTransport::InProcess(_) => None,
            ApiTransport::Http(service) => Some(format!("{}/symptoms#{word}", service.address())),
        }
    }

    /// Lists the first consumers and the first open jobs, as the API shows them.
    pub async fn status(&self) -> Result<Value, Error> {
        let consumers = self.get::<ItemPage>(&format!("/consumers?limit={PAGE_ITEMS}")).await?.items;
        let mut jobs = Vec::new();
        for status in ["processing", "pending"] {
            jobs.extend(self.get::<ItemPage>(&format!("/exports?status={status}&limit={PAGE_ITEMS}")).await?.items);
        }
        Ok(json!({ "consumers": Value::Array(consumers), "openJobs": Value::Array(jobs) }))
    }

    /// Downloads the bytes of a file by the call with this path, beginning at offset `from`. Skips the bytes before it
    /// if the answer is the whole file.
    pub(super) async fn fetch(&self, path: &str, sha256: &str, from: u64, into: &mut dyn Write) -> Result<(), Error> {
        let mut call = http::Request::get(path);
        if from > 0 {
            call = call.header(header::RANGE, format!("bytes={from}-"));
            call = call.header(header::IF_RANGE, format!("\"{sha256}\""));
        }
        let call = call.body(String::new()).map_err(CallError::from)?;
        let answer = self.call(call, ApiAnswer::file).await?;
        let answer = match (&*self.transport, answer.redirection()) {
            (ApiTransport::Http(service), Some(url)) => service.file_at(&url, from).await?,
            _ => answer,
        };
        // The whole file begins with the bytes that are here.
        let mut unneeded = if answer.is_whole() { from } else { 0 };
        let ApiAnswer { server, response } = answer;
        let mut pieces = BodyDataStream::new(response.into_body());
        loop {
            match pieces.try_next().await {
                Ok(Some(mut piece)) => {
                    let skipped = piece.split_to(unneeded.min(piece.len() as u64) as usize);
                    unneeded -= skipped.len() as u64;
                    into.write_all(&piece)?;
                }
                Ok(None) => return Ok(()),
                // A failure of the local disk is permanent. A failure of the network may not be.
                Err(cause) if matches!(*self.transport, ApiTransport::InProcess(_)) => {
                    return Err(io::Error::other(cause).into());
                }
                Err(cause) => return Err(CallError::Broken { server, why: http_client::reason(cause.as_ref()) }.into()),
            }
        }
    }
}

fn lane_path(Lane { consumer, dataset }: Lane<'_>, filter: &[(&str, &str)]) -> String {
    path_with("/exports", &[&[("consumer", consumer.as_str()), ("dataset", dataset)], filter].concat())
}

pub(super) fn export_path(id: JobId, call: &str, dataset: &str) -> String {
    path_with(&format!("/exports/{id}/{call}"), &[("dataset", dataset)])
}

fn path_with(path: &str, query: &[(&str, &str)]) -> String {
    let mut serialized = form_urlencoded::Serializer::for_suffix(format!("{path}?"), path.len() + 1);
    serialized.extend_pairs(query).finish()
}
