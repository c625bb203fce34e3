//! The service that a command talks to: one that this process has wired over the database, or a remote one. Commands call both by the same
//! API, and see jobs and consumers as it shows them.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use crate::event::DeliveryFilter;
use crate::http::InProcess;
use crate::job::{After, ConsumerId, Filter, JobId, Request, Status};
use crate::manifest::Manifest;
use crate::service::Service;
use crate::tls;
use anyhow::Context;
use futures_util::TryStreamExt;
use hyper::http::{self, Method, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use crate::command::BadUsage;
use crate::command::answer::{Answer, Error};
use crate::command::client::Client;
use crate::command::view::JobView;

/// How many rows of each list are shown.
pub(crate) const SHOWN: u32 = 200;
/// How often a job is looked at, if that costs no call over a network.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A service's API.
pub(crate) struct Api(Transport);

/// The way to the API.
enum Transport {
    InProcess(InProcess),
    Http(Client),
}

/// Why an export was refused.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Refusal {
    /// The word for it, as the API has it.
    pub(crate) code: String,
    /// The open exports that come first.
    pub(crate) open: Vec<JobId>,
    text: String,
}

/// What the answer to a submission says of the job.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Accepted {
    job_id: Uuid,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Items {
    items: Vec<Value>,
    next_cursor: Option<String>,
}

/// A call without a body.
fn call(method: Method, path: &str) -> Result<http::Request<String>, http::Error> {
    http::Request::builder().method(method).uri(path).body(String::new())
}

impl Api {
    /// The API of a service that this process has wired.
    pub(crate) fn in_process(service: Service) -> Api {
        Api(Transport::InProcess(InProcess::new(service)))
    }

    /// The API of a remote service.
    pub(crate) fn remote(client: Client) -> Api {
        Api(Transport::Http(client))
    }

    /// Makes a call. It must be idempotent, by its nature or by its headers: it may be sent twice. `read` takes what is wanted out of the
    /// answer.
    async fn call<T>(
        &self,
        call: http::Request<String>,
        read: impl AsyncFn(Answer) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match &self.0 {
            Transport::InProcess(api) => {
                let response = api.call(call.map(Into::into)).await;
                read(Answer { server: "this process".to_owned(), response }).await
            }
            Transport::Http(client) => client.call(&call, read).await,
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        Ok(self.call(call(Method::GET, path)?, Answer::json).await?)
    }

    async fn post(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.call(call(Method::POST, path)?, Answer::json).await?)
    }

    /// Asks for an export.
    pub(crate) async fn submit(&self, request: &Request) -> anyhow::Result<JobId> {
        let (format, compression) = (request.encoding.format.as_str(), request.encoding.compression.as_str());
        let mut body = json!({ "format": format, "compression": compression });
        // The service knows which one is meant where the command names none.
        if !request.dataset.is_empty() {
            body["dataset"] = request.dataset.as_str().into();
        }
        if let Some(bytes) = request.max_file_bytes {
            body["maxFileBytes"] = bytes.into();
        }
        match &request.after {
            None => {}
            Some(After::Nothing) => body["after"] = Value::Null,
            Some(After::Export { job, sha256 }) => {
                body["after"] = job.to_string().into();
                if let Some(sha256) = sha256 {
                    body["afterSha256"] = sha256.as_str().into();
                }
            }
        }
        let mut call = http::Request::post(format!("/exports/{}", request.export_type))
            .header("idempotency-key", Uuid::new_v4().to_string())
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(consumer) = &request.consumer {
            call = call.header("x-consumer-id", consumer.as_str());
        }
        match self.call(call.body(body.to_string())?, Answer::json).await {
            Ok(Accepted { job_id }) => Ok(job_id.into()),
            Err(error) => Err(self.refusal(error)),
        }
    }

    /// Why an export was refused, with a line for each export that comes first, published or not.
    fn refusal(&self, error: Error) -> anyhow::Error {
        let mut text = error.to_string();
        let Error::Refused { code, jobs, .. } = error else { return error.into() };
        let (option, mut open) = (self.server_option(), Vec::new());
        for job in jobs {
            let id = JobId::from(job.job_id);
            if &*job.status == Status::Completed.as_str() {
                text += &format!("\n  cdc-export download {id}{option}");
            } else {
                text += &format!("\n  {id} is open");
                open.push(id);
            }
        }
        Refusal { code: code.to_string(), open, text }.into()
    }

    /// A job's present state.
    pub(crate) async fn job(&self, id: JobId) -> anyhow::Result<JobView> {
        JobView::of(self.get(&format!("/exports/{id}")).await?)
    }

    /// A job's state when it ends, or after a moment if it doesn't end before.
    pub(crate) async fn poll(&self, id: JobId) -> anyhow::Result<JobView> {
        // Without a bar to draw, one call may wait for longer.
        let wait = if std::io::stderr().is_terminal() { 1 } else { 5 };
        let ended = async { JobView::of(self.get(&format!("/exports/{id}?wait={wait}")).await?) };
        let present = async {
            sleep(POLL_INTERVAL).await;
            self.job(id).await
        };
        match &self.0 {
            Transport::InProcess(_) => tokio::select! { job = ended => job, job = present => job },
            Transport::Http(_) => ended.await,
        }
    }

    /// Asks a job to stop. False: it is too late, the job is ending by itself.
    pub(crate) async fn cancel(&self, id: JobId) -> anyhow::Result<bool> {
        match self.call(call(Method::POST, &format!("/exports/{id}/cancel"))?, Answer::accepted).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Says that a published export, and all before it in its lane, are loaded.
    pub(crate) async fn ack(&self, id: JobId) -> anyhow::Result<()> {
        self.post(&format!("/exports/{id}/ack")).await.map(drop)
    }

    /// Asks for an export like one that failed or was cancelled; the new one's id.
    pub(crate) async fn retry(&self, id: JobId) -> anyhow::Result<JobId> {
        let call = http::Request::post(format!("/exports/{id}/retry"))
            .header("idempotency-key", Uuid::new_v4().to_string())
            .body(String::new())?;
        let Accepted { job_id } = self.call(call, Answer::json).await?;
        Ok(job_id.into())
    }

    /// The newest jobs that a filter lets through: `limit`, and one more if there is one.
    pub(crate) async fn jobs(&self, filter: &Filter, limit: u32) -> anyhow::Result<Vec<JobView>> {
        let Filter { consumer, dataset, export_type, status, .. } = filter;
        let query = [
            ("consumer", consumer.as_ref().map(|it| it.as_str())),
            ("dataset", dataset.as_deref()),
            ("exportType", export_type.map(|it| it.as_str())),
            ("status", status.map(|it| it.as_str())),
        ];
        self.listed(&query, limit).await
    }

    /// The exports of a lane that were published after this one, oldest first: `limit`, and one more if there is one.
    pub(crate) async fn published_after(
        &self,
        consumer: &ConsumerId,
        dataset: &str,
        after: JobId,
        limit: u32,
    ) -> anyhow::Result<Vec<JobView>> {
        let after = after.to_string();
        let query = [("consumer", consumer.as_str()), ("dataset", dataset), ("after", &after)];
        self.listed(&query.map(|(name, value)| (name, Some(value))), limit).await
    }

    /// The first exports of a list: `limit`, and one more if there is one.
    async fn listed(&self, query: &[(&str, Option<&str>)], limit: u32) -> anyhow::Result<Vec<JobView>> {
        let mut jobs = Vec::new();
        let (path, mut cursor) = (path_of("/exports", query), None::<String>);
        let wanted = limit as usize + 1;
        while jobs.len() < wanted {
            let rest = (wanted - jobs.len()).min(SHOWN as usize);
            let mut next = format!("{path}&limit={rest}");
            if let Some(cursor) = &cursor {
                next.extend(["&cursor=", &form_urlencoded::byte_serialize(cursor.as_bytes()).collect::<String>()]);
            }
            let page: Items = self.get(&next).await?;
            jobs.extend(page.items.into_iter().map(JobView::of).collect::<anyhow::Result<Vec<_>>>()?);
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        Ok(jobs)
    }

    /// The schedules, as the API shows them.
    pub(crate) async fn schedules(&self) -> anyhow::Result<Vec<Value>> {
        Ok(self.get::<Items>("/schedules").await?.items)
    }

    /// The newest deliveries that a filter lets through, as the API shows them, `limit` at most, and whether there are more.
    pub(crate) async fn deliveries(&self, filter: &DeliveryFilter, limit: u32) -> anyhow::Result<(Vec<Value>, bool)> {
        let query = [("status", filter.status.map(|it| it.as_str())), ("endpoint", filter.endpoint.as_deref())];
        let page: Items = self.get(&format!("{}&limit={limit}", path_of("/deliveries", &query))).await?;
        Ok((page.items, page.next_cursor.is_some()))
    }

    /// Has a receiver told of an event again.
    pub(crate) async fn redeliver(&self, id: Uuid) -> anyhow::Result<()> {
        self.post(&format!("/deliveries/{id}/redeliver")).await.map(drop)
    }

    /// Refuses a name that no dataset has.
    pub(crate) async fn require_dataset(&self, name: &str) -> anyhow::Result<()> {
        let path = format!("/datasets/{}", utf8_percent_encode(name, NON_ALPHANUMERIC));
        match (self.call(call(Method::GET, &path)?, Answer::json::<Value>).await, &self.0) {
            // The command's own catalog has no such dataset.
            (Err(error), Transport::InProcess(_)) if error.is_of("no_dataset") => {
                Err(BadUsage(error.to_string()).into())
            }
            (Err(error), Transport::Http(_)) if error.is_of("no_dataset") => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The dataset that is meant where none is named.
    pub(crate) async fn implied_dataset(&self) -> anyhow::Result<String> {
        let all: Items = self.get("/datasets").await?;
        let names: Vec<String> = all.items.iter().filter_map(|item| Some(item["name"].as_str()?.to_owned())).collect();
        match names.as_slice() {
            [only] => Ok(only.clone()),
            _ if names.iter().any(|name| name == "users") => Ok("users".to_owned()),
            _ => Err(BadUsage(format!("--dataset: one is to be named; there are: {}", names.join(", "))).into()),
        }
    }

    /// The manifest of a consumer's completed export.
    pub(crate) async fn manifest(&self, id: JobId) -> anyhow::Result<Manifest> {
        let manifest: Value = self.get(&format!("/exports/{id}/manifest")).await?;
        Manifest::read(manifest.to_string().as_bytes()).with_context(|| format!("the manifest of {id}"))
    }

    /// What `download` must be told to reach the same service.
    pub(crate) fn server_option(&self) -> String {
        match &self.0 {
            Transport::InProcess(_) => String::new(),
            Transport::Http(client) => format!(" --server {}", client.server()),
        }
    }

    /// The first consumers, and the first jobs that are open, as the API shows them.
    pub(crate) async fn status(&self) -> anyhow::Result<Value> {
        let consumers = self.get::<Items>(&format!("/consumers?limit={SHOWN}")).await?.items;
        let mut jobs = Vec::new();
        for status in [Status::Processing, Status::Pending] {
            jobs.extend(self.get::<Items>(&format!("/exports?status={status}&limit={SHOWN}")).await?.items);
        }
        Ok(json!({ "consumers": Value::Array(consumers), "openJobs": Value::Array(jobs) }))
    }

    /// Writes a completed job's only file, or this part of several, from its byte `from` on, into `into`.
    pub(crate) async fn fetch(
        &self,
        id: JobId,
        part: Option<u32>,
        sha256: &str,
        from: u64,
        into: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let path = match part {
            None => format!("/exports/{id}/download"),
            Some(part) => format!("/exports/{id}/files/{part}/download"),
        };
        let call = http::Request::get(path)
            .header(header::RANGE, format!("bytes={from}-"))
            .header(header::IF_RANGE, format!("\"{sha256}\""))
            .body(String::new())?;
        let Answer { server, response } = self.call(call, Answer::part_of_a_file).await?;
        let mut pieces = response.into_body().into_data_stream();
        loop {
            match pieces.try_next().await {
                Ok(Some(piece)) => into.write_all(&piece)?,
                Ok(None) => return Ok(()),
                // A disk, unlike a network, doesn't go on from there.
                Err(cause) if matches!(self.0, Transport::InProcess(_)) => return Err(cause.into()),
                Err(cause) => return Err(Error::Broken { server, why: tls::reason(&cause) }.into()),
            }
        }
    }
}

/// A path with its query.
fn path_of(path: &str, query: &[(&str, Option<&str>)]) -> String {
    let mut serialized = form_urlencoded::Serializer::for_suffix(format!("{path}?"), path.len() + 1);
    for (name, value) in query {
        if let Some(value) = value {
            serialized.append_pair(name, value);
        }
    }
    serialized.finish()
}
