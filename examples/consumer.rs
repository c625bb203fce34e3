//! A consumer that keeps an index of a dataset in one JSON file. It calls the API itself.
//!
//! ```sh
//! cargo run --release --example consumer -- http://localhost:8080 users index.json
//! ```
//!
//! Each run brings the index up to date. The file has the documents and the export that they came from, and a rename
//! replaces both at once. So each export is loaded exactly once, even if the program is killed: the next run goes on
//! from there. Run one process at a time for each file. `CDC_EXPORT_KEY` has the key, if the service wants one.

#![expect(clippy::disallowed_methods, reason = "an example is a program of its own, with its own settings")]

use std::collections::BTreeMap;
use std::error::Error;
use std::{env, fs};

use reqwest::{Client, Method, RequestBuilder};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The copy: each row under its key, and the export that it came from.
#[derive(Default, Deserialize, Serialize)]
struct Index {
    last: Option<LastExport>,
    documents: BTreeMap<String, Map<String, Value>>,
}

#[derive(Clone, Deserialize, Serialize)]
struct LastExport {
    job: String,
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Job {
    job_id: String,
    export_type: String,
    status: String,
    format: String,
    rows_exported: u64,
    error: Option<Failure>,
    files: Vec<File>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    code: String,
    detail: String,
}

#[derive(Deserialize)]
struct File {
    part: u32,
    sha256: String,
}

#[derive(Deserialize)]
struct Manifest {
    number: u64,
    digest: String,
    export: ManifestExport,
}

#[derive(Deserialize)]
struct ManifestExport {
    key: Vec<String>,
    columns: Vec<ManifestColumn>,
    previous: Option<String>,
}

/// A column of the files. One with `meta` is none of the table.
#[derive(Deserialize)]
struct ManifestColumn {
    name: String,
    meta: Option<String>,
}

/// The body of a refusal. `jobs` are the exports that the caller has not loaded, oldest first.
#[derive(Debug, Deserialize)]
struct Problem {
    code: String,
    detail: Option<String>,
    #[serde(default)]
    jobs: Vec<JobLink>,
}

/// The part of a job that the answer to a request has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JobLink {
    job_id: String,
}

/// The service's answer to a call: a value, or a refusal.
enum Answer<T> {
    Accepted(T),
    Refused(Problem),
}

impl<T> Answer<T> {
    /// Returns the value. A refusal is an error.
    fn accepted(self) -> Result<T> {
        match self {
            Answer::Accepted(value) => Ok(value),
            Answer::Refused(Problem { code, detail, .. }) => Err(format!("{code}: {detail:?}").into()),
        }
    }
}

/// The calls of one consumer for one dataset.
struct Service {
    client: Client,
    url: String,
    dataset: String,
}

impl Service {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url)).header("X-Consumer-ID", "json-index");
        match env::var("CDC_EXPORT_KEY") {
            Ok(key) => request.bearer_auth(key),
            Err(_) => request,
        }
    }

    /// Asks for an export. A delta goes on from `last`.
    async fn export(&self, kind: &str, last: Option<&LastExport>) -> Result<Answer<JobLink>> {
        let mut body = json!({"dataset": self.dataset, "format": "ndjson"});
        if kind == "delta" {
            body["after"] = json!(last.map(|last| &last.job));
            if let Some(last) = last {
                body["afterSha256"] = json!(last.digest);
            }
        }
        read(self.request(Method::POST, &format!("/exports/{kind}")).json(&body)).await
    }

    /// Waits until the job has ended. Returns it with its export of the dataset.
    async fn finished(&self, id: &str) -> Result<Job> {
        loop {
            let wait = self.request(Method::GET, &format!("/exports/{id}?wait=30"));
            let mut job: Map<String, Value> = read(wait).await?.accepted()?;
            // Somebody else requested a job of several datasets.
            if let Some(Value::Array(exports)) = job.remove("exports") {
                let own = exports.into_iter().find(|export| export["dataset"] == *self.dataset);
                job.extend(own.and_then(|own| own.as_object().cloned()).unwrap_or_default());
            }
            let job: Job = serde_json::from_value(job.into())?;
            if matches!(&*job.status, "completed" | "failed" | "cancelled") {
                return Ok(job);
            }
        }
    }

    /// Loads a completed export into the index. Returns its number, or `None` if its files were removed.
    async fn load(&self, job: &Job, index: &mut Index) -> Result<Option<u64>> {
        let path = format!("/exports/{}", job.job_id);
        let of = format!("?dataset={}", self.dataset);
        let manifest = self.request(Method::GET, &format!("{path}/manifest{of}"));
        let manifest: Manifest = read(manifest).await?.accepted()?;
        let previous = manifest.export.previous.as_ref();
        if manifest.export.key.is_empty() {
            return Err(format!("{} has no key, by which this index finds its rows", self.dataset).into());
        }
        // The first export of a consumer has all rows, whatever its type.
        if job.export_type == "full" || previous.is_none() {
            index.documents.clear();
        } else if index.last.as_ref().map(|last| &last.digest) != previous {
            return Err("the export doesn't follow the last one".into());
        }
        // The first column of a delta says what became of the row.
        let columns = &manifest.export.columns;
        let operation = columns.first().filter(|_| job.export_type == "delta");
        let meta: Vec<_> = columns.iter().filter(|column| column.meta.is_some()).map(|column| &*column.name).collect();
        for file in &job.files {
            let download = self.request(Method::GET, &format!("{path}/files/{}/download{of}", file.part));
            let mut answer = download.send().await?;
            if answer.status() == 410 {
                return Ok(None);
            }
            answer = answer.error_for_status()?;
            let (mut digest, mut rest) = (Context::new(&SHA256), Vec::new());
            while let Some(chunk) = answer.chunk().await? {
                digest.update(&chunk);
                rest.extend_from_slice(&chunk);
                let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                for line in rest[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    let mut row: Map<_, _> = serde_json::from_slice(line)?;
                    let operation = operation.and_then(|column| row.remove(&column.name));
                    row.retain(|name, _| !meta.contains(&name.as_str()));
                    index.apply(row, operation, &manifest.export.key)?;
                }
                rest.drain(..end);
            }
            if hex::encode(digest.finish()) != file.sha256 {
                return Err(format!("part {} of {} was damaged on its way", file.part, job.job_id).into());
            }
        }
        index.last = Some(LastExport { job: job.job_id.clone(), digest: manifest.digest });
        Ok(Some(manifest.number))
    }

    /// Loads every export that the index lacks, and then a new one. Saves the index after each.
    async fn update(&self, path: &str) -> Result<()> {
        let mut kind = "delta";
        loop {
            let saved = Index::open(path)?;
            let (jobs, is_new) = match self.export(kind, saved.last.as_ref()).await? {
                Answer::Accepted(job) => (vec![job], true),
                Answer::Refused(problem) if matches!(&*problem.code, "database_restored" | "full_only") => {
                    kind = "full";
                    continue;
                }
                // An earlier run asked for these, and ended before it loaded them.
                Answer::Refused(problem) if problem.code == "out_of_step" => (problem.jobs, false),
                refused @ Answer::Refused(_) => return refused.accepted().map(drop),
            };
            kind = "delta";
            let mut index = saved;
            for job in jobs {
                let job = self.finished(&job.job_id).await?;
                let needs_full = job.error.as_ref().is_some_and(|error| error.code == "full_export_needed");
                if needs_full || job.format != "ndjson" {
                    kind = "full";
                    break;
                }
                if job.status == "completed" {
                    let Some(number) = self.load(&job, &mut index).await? else {
                        kind = "full";
                        break;
                    };
                    index.save(path)?;
                    let ack =
                        self.request(Method::POST, &format!("/exports/{}/ack?dataset={}", job.job_id, self.dataset));
                    read::<Value>(ack).await?.accepted()?;
                    println!("{} {number}: {} rows", job.export_type, job.rows_exported);
                } else if is_new {
                    let why = job.error.map(|error| error.detail).unwrap_or_default();
                    return Err(format!("the export {} is {}: {why}", job.job_id, job.status).into());
                }
            }
            if is_new && kind == "delta" {
                return Ok(());
            }
        }
    }
}

/// Sends a request, and reads the answer's body.
async fn read<T: for<'de> Deserialize<'de>>(request: RequestBuilder) -> Result<Answer<T>> {
    let answer = request.send().await?;
    let is_accepted = answer.status().is_success();
    let body = answer.bytes().await?;
    Ok(if is_accepted {
        Answer::Accepted(serde_json::from_slice(&body)?)
    } else {
        Answer::Refused(serde_json::from_slice(&body)?)
    })
}

impl Index {
    fn open(path: &str) -> Result<Index> {
        if !fs::exists(path)? {
            return Ok(Index::default());
        }
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// Replaces the file by a rename, so a crash leaves the old one or the new one.
    fn save(&self, path: &str) -> Result<()> {
        let part = format!("{path}.part");
        fs::write(&part, serde_json::to_vec(self)?)?;
        fs::File::open(&part)?.sync_all()?;
        Ok(fs::rename(&part, path)?)
    }

    fn apply(&mut self, row: Map<String, Value>, operation: Option<Value>, key: &[String]) -> Result<()> {
        let key = serde_json::to_string(&key.iter().map(|column| row.get(column)).collect::<Vec<_>>())?;
        if operation.is_some_and(|operation| operation == "DELETE") {
            self.documents.remove(&key);
        } else {
            self.documents.insert(key, row);
        }
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [url, dataset, path] = &arguments[..] else {
        return Err("usage: consumer URL DATASET INDEX.json".into());
    };
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "TLS is set up twice")?;
    let service =
        Service { client: Client::new(), url: url.trim_end_matches('/').to_owned(), dataset: dataset.clone() };
    service.update(path).await
}
