//! A bucket of an emulator, accessed by plain HTTP. The checks of the service's objects don't even share a client
//! library with the service.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, Response, StatusCode};
use uuid::Uuid;

use crate::place::Identity;
use crate::{clients, environment};

/// Shared access signature for the emulator of Azure, whose key is public. It is valid until the year 2099.
const AZURITE: &str = "se=2099-01-01T00%3A00%3A00Z&sp=rwdlac&sv=2026-10-06&ss=b&srt=sco&sig=5x/ZkIOORRabQ%2BcTQiijQru%2BqlZISjMz8nC58gJezkk%3D";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cloud {
    S3,
    Azure,
}

#[derive(Clone)]
pub(crate) struct Bucket {
    cloud: Cloud,
    endpoint: String,
    name: String,
    prefix: String,
    client: reqwest::Client,
}

#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub(crate) key: String,
    id: String,
}

impl Bucket {
    /// Returns the bucket at a URL of the service, on the emulator that `tests/buckets.sh` has started.
    pub(crate) fn at(url: &str) -> Result<Bucket> {
        let (scheme, rest) = url.split_once("://").context("--store is a URL, as s3://bucket/prefix")?;
        let (cloud, variable) = match scheme {
            "s3" => (Cloud::S3, "BUCKETS_S3"),
            "az" => (Cloud::Azure, "BUCKETS_AZURE"),
            _ => bail!("--store is s3://BUCKET/PREFIX or az://CONTAINER/PREFIX"),
        };
        let endpoint =
            environment(variable).with_context(|| format!("{variable} is not set; tests/buckets.sh does"))?;
        let (name, prefix) = rest.trim_end_matches('/').split_once('/').unwrap_or((rest, ""));
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let client = clients::client_builder().timeout(std::time::Duration::from_secs(30)).build()?;
        Ok(Bucket { cloud, endpoint, name: name.to_owned(), prefix, client })
    }

    /// Creates the bucket if it does not exist. Returns it with a prefix that nobody has used.
    pub(crate) async fn unused(&self) -> Result<Bucket> {
        let made = match self.cloud {
            Cloud::S3 => self.send(Method::PUT, "", &[]).await?,
            Cloud::Azure => self.send(Method::PUT, "", &[("restype", "container")]).await?,
        };
        ensure!(made.status().is_success() || made.status() == StatusCode::CONFLICT, "{}", made.text().await?);
        let unique = Uuid::new_v4().simple().to_string();
        Ok(Bucket { prefix: format!("{}{}/", self.prefix, &unique[..8]), ..self.clone() })
    }

    pub(crate) fn port(&self) -> Result<u16> {
        let (_, port) = self.endpoint.rsplit_once(':').context("an emulator listens on a port")?;
        Ok(port.parse()?)
    }

    /// Returns the variables with which a service reaches the bucket through this port. The access keys are dummies.
    pub(crate) fn environment(&self, port: u16) -> Vec<(&'static str, String)> {
        let endpoint = format!("http://127.0.0.1:{port}");
        let mut variables = vec![("OUTPUT_URL", self.url("")), ("OUTPUT_PART_SIZE", "5MiB".to_owned())];
        variables.extend(match self.cloud {
            Cloud::S3 => vec![
                ("AWS_ENDPOINT_URL", endpoint),
                ("AWS_ALLOW_HTTP", "true".to_owned()),
                ("AWS_ACCESS_KEY_ID", "test".to_owned()),
                ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ],
            Cloud::Azure => {
                vec![("AZURE_STORAGE_USE_EMULATOR", "true".to_owned()), ("AZURITE_BLOB_STORAGE_URL", endpoint)]
            }
        });
        variables
    }

    pub(crate) fn url(&self, name: &str) -> String {
        let scheme = match self.cloud {
            Cloud::S3 => "s3",
            Cloud::Azure => "az",
        };
        format!("{scheme}://{}/{}{name}", self.name, self.prefix).trim_end_matches('/').to_owned()
    }

    pub(crate) async fn objects(&self) -> Result<HashMap<String, Identity>> {
        let (fixed, [element, key, etag, size, from, next]): (&[_], _) = match self.cloud {
            Cloud::S3 => (
                &[("list-type", "2")],
                ["Contents", "Key", "ETag", "Size", "continuation-token", "NextContinuationToken"],
            ),
            Cloud::Azure => (
                &[("restype", "container"), ("comp", "list")],
                ["Blob", "Name", "Etag", "Content-Length", "marker", "NextMarker"],
            ),
        };
        let mut found = HashMap::new();
        let mut token: Option<String> = None;
        loop {
            let mut query = [fixed, &[("prefix", self.prefix.as_str())]].concat();
            query.extend(token.as_deref().map(|token| (from, token)));
            let page = self.asked("", &query).await?;
            for object in page.split(&format!("<{element}>")).skip(1) {
                let text = |name| text(object, name).with_context(|| format!("an object without its {name}"));
                let name = text(key)?.strip_prefix(&self.prefix).context("a list has what was asked for")?;
                let modified = text("Last-Modified").or(text("LastModified"))?.to_owned();
                let object = Identity { tag: text(etag)?.to_owned(), size: text(size)?.parse()?, modified };
                found.insert(name.to_owned(), object);
            }
            match text(&page, next).filter(|token| !token.is_empty()) {
                Some(next) => token = Some(next.to_owned()),
                None => return Ok(found),
            }
        }
    }

    pub(crate) async fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let answer = self.send(Method::GET, &format!("{}{name}", self.prefix), &[]).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(answer.error_for_status()?.bytes().await?.to_vec()))
    }

    /// Returns the uploads that have parts. A process that dies just after it began an upload leaves one without parts,
    /// which a rule of the bucket ends. Azure has no list of uploads, and drops by itself those that nobody completes.
    pub(crate) async fn uploads(&self) -> Result<Vec<Upload>> {
        let mut found = Vec::new();
        if self.cloud == Cloud::Azure {
            return Ok(found);
        }
        let page = self.asked("", &[("uploads", ""), ("prefix", &self.prefix)]).await?;
        ensure!(text(&page, "IsTruncated") != Some("true"), "more than a thousand uploads are left");
        for upload in page.split("<Upload>").skip(1) {
            let text = |name| text(upload, name).with_context(|| format!("an upload without its {name}"));
            let upload = Upload { key: text("Key")?.to_owned(), id: text("UploadId")?.to_owned() };
            if self.asked(&upload.key, &[("uploadId", &upload.id)]).await?.contains("<Part>") {
                found.push(upload);
            }
        }
        Ok(found)
    }

    async fn asked(&self, key: &str, query: &[(&str, &str)]) -> Result<String> {
        Ok(self.send(Method::GET, key, query).await?.error_for_status()?.text().await?)
    }

    async fn send(&self, method: Method, key: &str, query: &[(&str, &str)]) -> Result<Response> {
        let mut query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let account = match self.cloud {
            Cloud::S3 => "",
            Cloud::Azure => "/devstoreaccount1",
        };
        if self.cloud == Cloud::Azure {
            query = format!("{query}&{AZURITE}");
        }
        let slash = if key.is_empty() { "" } else { "/" };
        let url = format!("{}{account}/{}{slash}{key}?{query}", self.endpoint, self.name);
        Ok(self.client.request(method, url).send().await?)
    }
}

fn text<'x>(xml: &'x str, name: &str) -> Option<&'x str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once("</")?.0)
}
