//! The service that a command talks to: one that this process has wired over the database, or a remote one. Commands see both in
//! one way, as the API shows jobs and consumers.

mod deliveries;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use crate::http;
use crate::job::lane::Lane;
use crate::job::{After, ConsumerId, Filter, Job, JobId, Request, Status};
use crate::manifest::Manifest;
use crate::service::{self, Service, Subscriber};
use anyhow::Context;
use hyper::http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use uuid::Uuid;

use crate::command::BadUsage;
use crate::command::client::{Client, Error, NamedJob};
use crate::command::view::JobView;

/// How many rows of each list are shown.
pub(crate) const SHOWN: u32 = 200;
/// How much of a file is in memory at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// The service of this process, or a remote one.
pub(crate) enum Backend {
    Local(Box<Service>),
    Remote(Client),
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
    #[serde(default)]
    next_cursor: Option<String>,
}

impl Backend {
    /// Asks for an export.
    pub(crate) async fn submit(&self, request: &Request) -> anyhow::Result<JobId> {
        match self {
            Backend::Local(service) => match service.submit(request).await {
                Ok(job) => Ok(job.id),
                Err(error) => Err(match &error {
                    service::Error::OutOfStep(jobs) => {
                        let named = |job: &Job| (job.id, job.status == Status::Completed);
                        self.refusal("out_of_step", error.to_string(), jobs.iter().map(named)).into()
                    }
                    _ => error.into(),
                }),
            },
            Backend::Remote(client) => {
                let mut headers = HeaderMap::new();
                if let Some(consumer) = &request.consumer {
                    headers.insert("x-consumer-id", consumer.as_str().parse()?);
                }
                headers.insert("idempotency-key", Uuid::new_v4().to_string().parse()?);
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
                let path = format!("/exports/{}", request.export_type);
                let answer = client.post(&path, &headers, Some(&body)).await;
                answer.map(|Accepted { job_id }| job_id.into()).map_err(|error| match &error {
                    Error::Refused { code, jobs, .. } => {
                        let named = |job: &NamedJob| (job.job_id.into(), &*job.status == Status::Completed.as_str());
                        self.refusal(code, error.to_string(), jobs.iter().map(named)).into()
                    }
                    _ => error.into(),
                })
            }
        }
    }

    /// Why an export was refused, with a line for each export that comes first, published or not.
    fn refusal(&self, code: &str, why: String, jobs: impl Iterator<Item = (JobId, bool)>) -> Refusal {
        let option = self.server_option();
        let (mut text, mut open) = (why, Vec::new());
        for (id, is_published) in jobs {
            if is_published {
                text += &format!("\n  cdc-export download {id}{option}");
            } else {
                text += &format!("\n  {id} is open");
                open.push(id);
            }
        }
        Refusal { code: code.to_owned(), open, text }
    }

    /// A job's present state.
    pub(crate) async fn job(&self, id: JobId) -> anyhow::Result<JobView> {
        let json = match self {
            Backend::Local(service) => http::job_as_json(service.job(id).await?),
            Backend::Remote(client) => client.get(&format!("/exports/{id}")).await?,
        };
        JobView::of(json)
    }

    /// A job's state when it ends, or after a moment if it doesn't end before.
    pub(crate) async fn poll(&self, id: JobId) -> anyhow::Result<JobView> {
        let json = match self {
            Backend::Local(service) => http::job_as_json(
                service.ended_job(id, Duration::from_millis(100), Subscriber::Address([127, 0, 0, 1].into())).await?,
            ),
            Backend::Remote(client) => {
                // Without a bar to draw, one call may wait for longer.
                let wait = if std::io::stderr().is_terminal() { 1 } else { 5 };
                client.get(&format!("/exports/{id}?wait={wait}")).await?
            }
        };
        JobView::of(json)
    }

    /// Asks a job to stop. False: it is too late, the job is ending by itself.
    pub(crate) async fn cancel(&self, id: JobId) -> anyhow::Result<bool> {
        match self {
            Backend::Local(service) => match service.cancel(id).await {
                Ok(_) => Ok(true),
                Err(service::Error::Committing | service::Error::Ended(_)) => Ok(false),
                Err(error) => Err(error.into()),
            },
            Backend::Remote(client) => {
                let path = format!("/exports/{id}/cancel");
                match client.post::<Value>(&path, &HeaderMap::new(), None).await {
                    Ok(_) => Ok(true),
                    Err(error) if error.is_conflict() => Ok(false),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Says that a published export, and all before it in its lane, are loaded.
    pub(crate) async fn ack(&self, id: JobId) -> anyhow::Result<()> {
        match self {
            Backend::Local(service) => Ok(service.acknowledge(id).await.map(drop)?),
            Backend::Remote(client) => {
                let path = format!("/exports/{id}/ack");
                client.post::<Value>(&path, &HeaderMap::new(), None).await?;
                Ok(())
            }
        }
    }

    /// Asks for an export like one that failed or was cancelled; the new one's id.
    pub(crate) async fn retry(&self, id: JobId) -> anyhow::Result<JobId> {
        match self {
            Backend::Local(service) => Ok(service.retry(id, None, None).await?.id),
            Backend::Remote(client) => {
                let mut headers = HeaderMap::new();
                headers.insert("idempotency-key", Uuid::new_v4().to_string().parse()?);
                let path = format!("/exports/{id}/retry");
                let Accepted { job_id } = client.post(&path, &headers, None).await?;
                Ok(job_id.into())
            }
        }
    }

    /// The newest jobs that a filter lets through: `limit`, and one more if there is one.
    pub(crate) async fn jobs(&self, filter: &Filter, limit: u32) -> anyhow::Result<Vec<JobView>> {
        match self {
            Backend::Local(service) => views(service.jobs(filter, limit + 1).await?),
            Backend::Remote(client) => {
                let Filter { consumer, dataset, export_type, status, .. } = filter;
                let query = [
                    ("consumer", consumer.as_ref().map(|it| it.as_str())),
                    ("dataset", dataset.as_deref()),
                    ("exportType", export_type.map(|it| it.as_str())),
                    ("status", status.map(|it| it.as_str())),
                ];
                listed(client, &query, limit).await
            }
        }
    }

    /// The exports of a lane that were published after this one, oldest first: `limit`, and one more if there is one.
    pub(crate) async fn published_after(
        &self,
        consumer: &ConsumerId,
        dataset: &str,
        after: JobId,
        limit: u32,
    ) -> anyhow::Result<Vec<JobView>> {
        match self {
            Backend::Local(service) => {
                let lane = Lane { consumer, dataset };
                views(service.published_after(lane, after, None, limit + 1).await?)
            }
            Backend::Remote(client) => {
                let after = after.to_string();
                let query = [("consumer", consumer.as_str()), ("dataset", dataset), ("after", &after)];
                listed(client, &query.map(|(name, value)| (name, Some(value))), limit).await
            }
        }
    }

    /// The schedules, as the API shows them.
    pub(crate) async fn schedules(&self) -> anyhow::Result<Vec<Value>> {
        match self {
            Backend::Local(service) => {
                Ok(service.schedules(None).await?.into_iter().map(http::schedule_as_json).collect())
            }
            Backend::Remote(client) => Ok(client.get::<Items>("/schedules").await?.items),
        }
    }

    /// Refuses a name that no dataset has.
    pub(crate) async fn require_dataset(&self, name: &str) -> anyhow::Result<()> {
        match self {
            Backend::Local(service) => service.dataset(name).map(drop).map_err(|why| BadUsage(why.to_string()).into()),
            Backend::Remote(client) => {
                let name = name.to_owned();
                match client.get::<Value>(&format!("/datasets/{name}")).await {
                    Err(error) if error.is_of("no_dataset") => Err(error.into()),
                    _ => Ok(()),
                }
            }
        }
    }

    /// The dataset that is meant where none is named.
    pub(crate) async fn implied_dataset(&self) -> anyhow::Result<String> {
        let names: Vec<String> = match self {
            Backend::Local(service) => return Ok(service.implied_dataset()?.name.clone()),
            Backend::Remote(client) => {
                let all: Items = client.get("/datasets").await?;
                all.items.iter().filter_map(|item| Some(item["name"].as_str()?.to_owned())).collect()
            }
        };
        match names.as_slice() {
            [only] => Ok(only.clone()),
            _ if names.iter().any(|name| name == "users") => Ok("users".to_owned()),
            _ => Err(BadUsage(format!("--dataset: one is to be named; there are: {}", names.join(", "))).into()),
        }
    }

    /// A completed export's manifest; `None`: it has none.
    pub(crate) async fn manifest(&self, id: JobId) -> anyhow::Result<Option<Manifest>> {
        let text = match self {
            Backend::Local(service) => match service.manifest(id).await {
                Err(service::Error::NoManifest) => return Ok(None),
                text => text?,
            },
            Backend::Remote(client) => {
                let path = format!("/exports/{id}/manifest");
                match client.get::<Value>(&path).await {
                    Err(error) if error.is_of("no_manifest") => return Ok(None),
                    manifest => manifest?.to_string(),
                }
            }
        };
        let manifest = Manifest::read(text.as_bytes()).with_context(|| format!("the manifest of {id}"))?;
        Ok(Some(manifest))
    }

    /// What `download` must be told to reach the same service.
    pub(crate) fn server_option(&self) -> String {
        match self {
            Backend::Local(_) => String::new(),
            Backend::Remote(client) => format!(" --server {}", client.server()),
        }
    }

    /// The first consumers, and the first jobs that are open, as the API shows them.
    pub(crate) async fn status(&self) -> anyhow::Result<Value> {
        let open = [Status::Processing, Status::Pending];
        let (consumers, jobs) = match self {
            Backend::Local(service) => {
                let consumers = service.consumers(None, None, SHOWN).await?;
                let mut jobs: Vec<Job> = Vec::new();
                for status in open {
                    jobs.extend(service.jobs(&Filter { status: Some(status), ..Filter::default() }, SHOWN).await?);
                }
                let consumers = consumers.into_iter().map(http::consumer_as_json).collect();
                (consumers, jobs.into_iter().map(http::job_as_json).collect())
            }
            Backend::Remote(client) => {
                let list = async |path: String| client.get::<Items>(&path).await;
                let consumers = list(format!("/consumers?limit={SHOWN}")).await?.items;
                let mut jobs = Vec::new();
                for status in open {
                    jobs.extend(list(format!("/exports?status={status}&limit={SHOWN}")).await?.items);
                }
                (consumers, jobs)
            }
        };
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
        match self {
            Backend::Local(service) => {
                let mut chunk = vec![0; CHUNK_BYTES];
                let file = service.open_file(id, part).await?;
                let size = file.bytes;
                let mut part = file.part(from, size - from).await?;
                loop {
                    match part.read(&mut chunk).await? {
                        0 => return Ok(()),
                        read => into.write_all(&chunk[..read])?,
                    }
                }
            }
            Backend::Remote(client) => {
                let path = match part {
                    None => format!("/exports/{id}/download"),
                    Some(part) => format!("/exports/{id}/files/{part}/download"),
                };
                let mut answer = client.file(&path, from, sha256).await?;
                while let Some(chunk) = answer.chunk().await.map_err(|cause| client.broken(&cause))? {
                    into.write_all(&chunk)?;
                }
                Ok(())
            }
        }
    }
}

fn views(jobs: Vec<Job>) -> anyhow::Result<Vec<JobView>> {
    jobs.into_iter().map(|job| JobView::of(http::job_as_json(job))).collect()
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

/// The first items of a list of the API: `limit`, and one more if there is one.
async fn listed(client: &Client, query: &[(&str, Option<&str>)], limit: u32) -> anyhow::Result<Vec<JobView>> {
    let mut jobs = Vec::new();
    let (path, mut cursor) = (path_of("/exports", query), None::<String>);
    let wanted = limit as usize + 1;
    while jobs.len() < wanted {
        let rest = (wanted - jobs.len()).min(SHOWN as usize);
        let mut next = format!("{path}&limit={rest}");
        if let Some(cursor) = &cursor {
            next.extend(["&cursor=", &form_urlencoded::byte_serialize(cursor.as_bytes()).collect::<String>()]);
        }
        let page: Items = client.get(&next).await?;
        jobs.extend(page.items.into_iter().map(JobView::of).collect::<anyhow::Result<Vec<_>>>()?);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    Ok(jobs)
}
