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

/// The service's answer to a call: its body, or that of a refusal, which has a `code`.
enum Answer {
    Accepted(Value),
    Refused(Value),
}

impl Answer {
    /// Returns the body. A refusal is an error.
    fn accepted(self) -> Result<Value> {
        match self {
            Answer::Accepted(body) => Ok(body),
            Answer::Refused(problem) => Err(format!("{}: {}", problem["code"], problem["detail"]).into()),
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
    async fn export(&self, kind: &str, last: Option<&LastExport>) -> Result<Answer> {
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
    async fn finished(&self, id: &str) -> Result<Value> {
        loop {
            let mut job = read(self.request(Method::GET, &format!("/exports/{id}?wait=30"))).await?.accepted()?;
            if !matches!(text(&job, "status")?, "completed" | "failed" | "cancelled") {
                continue;
            }
            // Somebody else requested a job of several datasets.
            let exports = job["exports"].as_array().cloned().unwrap_or_default();
            let own = exports.into_iter().find(|export| export["dataset"] == *self.dataset);
            if let (Some(Value::Object(own)), Some(job)) = (own, job.as_object_mut()) {
                job.extend(own);
            }
            return Ok(job);
        }
    }

    /// Loads a completed export into the index. Returns its number, or `None` if its files were removed.
    async fn load(&self, id: &str, job: &Value, index: &mut Index) -> Result<Option<u64>> {
        let path = format!("/exports/{id}");
        let of = format!("?dataset={}", self.dataset);
        let manifest = self.request(Method::GET, &format!("{path}/manifest{of}"));
        let manifest: Manifest = serde_json::from_value(read(manifest).await?.accepted()?)?;
        let previous = manifest.export.previous.as_ref();
        if manifest.export.key.is_empty() {
            return Err(format!("{} has no key, by which this index finds its rows", self.dataset).into());
        }
        // The first export of a consumer has all rows, whatever its type.
        if job["exportType"] == "full" || previous.is_none() {
            index.documents.clear();
        } else if index.last.as_ref().map(|last| &last.digest) != previous {
            return Err("the export doesn't follow the last one".into());
        }
        // The first column of a delta says what became of the row.
        let columns = &manifest.export.columns;
        let operation = columns.first().filter(|_| job["exportType"] == "delta");
        let meta: Vec<_> = columns.iter().filter(|column| column.meta.is_some()).map(|column| &*column.name).collect();
        for file in job["files"].as_array().into_iter().flatten() {
            let download = self.request(Method::GET, &format!("{path}/files/{}/download{of}", file["part"]));
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
            if file["sha256"] != *hex::encode(digest.finish()) {
                return Err(format!("part {} of {id} was damaged on its way", file["part"]).into());
            }
        }
        index.last = Some(LastExport { job: id.to_owned(), digest: manifest.digest });
        Ok(Some(manifest.number))
    }

    /// Loads every export that the index lacks, and then a new one. Saves the index after each.
    async fn update(&self, path: &str) -> Result<()> {
        let mut kind = "delta";
        loop {
            let saved = Index::open(path)?;
            let (jobs, is_new) = match self.export(kind, saved.last.as_ref()).await? {
                Answer::Accepted(job) => (vec![job], true),
                Answer::Refused(problem)
                    if problem["code"] == "database_restored" || problem["code"] == "full_only" =>
                {
                    kind = "full";
                    continue;
                }
                // An earlier run asked for these, oldest first, and ended before it loaded them.
                Answer::Refused(problem) if problem["code"] == "out_of_step" => {
                    (problem["jobs"].as_array().cloned().unwrap_or_default(), false)
                }
                refused @ Answer::Refused(_) => return refused.accepted().map(drop),
            };
            kind = "delta";
            let mut index = saved;
            for job in jobs {
                let id = text(&job, "jobId")?;
                let job = self.finished(id).await?;
                if job["error"]["code"] == "full_export_needed" || job["format"] != "ndjson" {
                    kind = "full";
                    break;
                }
                if job["status"] == "completed" {
                    let Some(number) = self.load(id, &job, &mut index).await? else {
                        kind = "full";
                        break;
                    };
                    index.save(path)?;
                    let ack = format!("/exports/{id}/ack?dataset={}", self.dataset);
                    read(self.request(Method::POST, &ack)).await?.accepted()?;
                    println!("{} {number}: {} rows", text(&job, "exportType")?, job["rowsExported"]);
                } else if is_new {
                    return Err(format!("the export {id} is {}: {}", job["status"], job["error"]["detail"]).into());
                }
            }
            if is_new && kind == "delta" {
                return Ok(());
            }
        }
    }
}

fn text<'a>(job: &'a Value, member: &str) -> Result<&'a str> {
    job[member].as_str().ok_or_else(|| format!("the answer has no {member}: {job}").into())
}

/// Sends a request, and reads the answer's body.
async fn read(request: RequestBuilder) -> Result<Answer> {
    let answer = request.send().await?;
    let is_accepted = answer.status().is_success();
    let body = serde_json::from_slice(&answer.bytes().await?)?;
    Ok(if is_accepted { Answer::Accepted(body) } else { Answer::Refused(body) })
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
