//! A client of a remote service's API.
//!
//! Each call may be sent again without harm: a submission carries an idempotency key. So once the service has answered at all,
//! the client retries while the network fails, or the service restarts or is busy.

use std::error::Error as StdError;
use std::ffi::OsStr;
use std::fmt::{self, Display};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::config::ApiKey;
use crate::http::answer_from_json;
use crate::tls;
use anyhow::Context;
use bytes::Bytes;
use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::http::{HeaderMap, Method, Uri, header};
use reqwest::{Body, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// How long one call is retried.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a call waits for the next byte. The service answers within 2 seconds, if only that it can't.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest JSON answer that is read: a page of jobs has some 200 kB.
const MOST_BYTES: usize = 16 << 20;

/// A service's address: `http://host:port`, with a path before the API's own where a proxy puts one.
#[derive(Clone, Debug)]
pub(crate) struct Address(String);

/// A text that is not an [`Address`].
#[derive(Debug, thiserror::Error)]
#[error("not the address of a service, such as http://127.0.0.1:8080")]
pub(crate) struct NotAnAddress;

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Address, NotAnAddress> {
        let uri: Uri = text.parse().map_err(|_| NotAnAddress)?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        // `ps` would show a name and a password in it.
        let is_plain = uri.authority().is_some_and(|authority| {
            let port = authority.as_str().trim_start_matches(authority.host());
            !authority.as_str().contains('@') && (port.is_empty() || authority.port_u16().is_some())
        });
        if is_web && is_plain && !text.contains(['?', '#']) {
            Ok(Address(text.trim_end_matches('/').to_owned()))
        } else {
            Err(NotAnAddress)
        }
    }
}

/// Reads an [`Address`] argument. Unlike clap's own parsers it doesn't quote what it refuses, which may hold a password.
#[derive(Clone)]
pub(crate) struct AddressParser;

impl TypedValueParser for AddressParser {
    type Value = Address;

    fn parse_ref(&self, cmd: &clap::Command, arg: Option<&clap::Arg>, value: &OsStr) -> Result<Address, clap::Error> {
        let name = arg.and_then(clap::Arg::get_long).unwrap_or_default();
        let refusal = |why| clap::Error::raw(ErrorKind::ValueValidation, format!("--{name}: {why}\n")).with_cmd(cmd);
        value.to_str().ok_or(NotAnAddress).and_then(str::parse).map_err(refusal)
    }
}

impl Address {
    /// Whether everybody on the way to the service can read what is sent.
    fn is_readable_on_the_way(&self) -> bool {
        self.0.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:")) && !self.is_here()
    }

    /// Whether the address is on this machine.
    fn is_here(&self) -> bool {
        let host =
            self.0.parse::<Uri>().ok().and_then(|uri| uri.host().map(|host| host.trim_matches(['[', ']']).to_owned()));
        host.is_some_and(|host| {
            host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        })
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{server} can't be reached: {why}; is a service running there?")]
    Unreachable { server: Address, why: String },
    #[error("the connection to {server} broke: {why}")]
    Broken { server: Address, why: String },
    #[error("{detail}{}", next_step(.code))]
    Refused { status: u16, code: PlainText, detail: PlainText, jobs: Vec<NamedJob>, retry_after: Option<Duration> },
    #[error("{server} answers {status}, and not as cdc-export does: is the address right?")]
    Foreign { server: Address, status: u16 },
}

/// What the caller can do about a refusal, where the detail doesn't say it.
fn next_step(code: &str) -> &'static str {
    match code {
        "key_required" => {
            "; put a key into CDC_EXPORT_KEY: `cdc-export keys create`, run where the service is, prints one"
        }
        "key_invalid" => {
            "; the key in CDC_EXPORT_KEY is of no use: `cdc-export keys list`, run where the service is, says why"
        }
        "host_not_local" => "; with AUTH=keys, the service is open to callers that have a key",
        _ => "",
    }
}

impl Error {
    /// Whether the job's state doesn't allow the call (409): it was too late.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Error::Refused { status: 409, .. })
    }

    /// Whether the service refused the call with this code.
    pub(crate) fn is_of(&self, word: &str) -> bool {
        matches!(self, Error::Refused { code, .. } if &**code == word)
    }

    /// Whether the same call may get another answer later.
    fn may_pass(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Broken { .. } => true,
            Error::Refused { status, .. } => matches!(status, 429 | 503),
            // A proxy's answer while the service behind it restarts.
            Error::Foreign { status, .. } => matches!(status, 502..=504),
        }
    }
}

/// A text from a service, without the control characters that a terminal would obey.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "String")]
pub(crate) struct PlainText(String);

impl From<String> for PlainText {
    fn from(text: String) -> PlainText {
        PlainText(text.chars().filter(|c| !c.is_control()).collect())
    }
}

impl std::ops::Deref for PlainText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Display for PlainText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The members of a problem that this client uses.
#[derive(Deserialize)]
struct Problem {
    code: PlainText,
    detail: PlainText,
    #[serde(default)]
    jobs: Vec<NamedJob>,
}

/// An export that a refusal names.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NamedJob {
    pub(crate) job_id: Uuid,
    pub(crate) status: PlainText,
}

/// Speaks to one service.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: Address,
    key: Option<ApiKey>,
    /// Whether the service has answered once. Until then nothing is retried: the address may be wrong.
    has_answered: AtomicBool,
    /// Whether the user was told that the service doesn't answer now.
    has_warned: AtomicBool,
}

impl Client {
    /// A client of the service at an address, which it shows the key. Warns where others on the way could read the key.
    pub(crate) fn new(server: Address, key: Option<ApiKey>) -> anyhow::Result<Client> {
        if key.is_some() && server.is_readable_on_the_way() {
            eprintln!(
                "cdc-export: warning: the key goes to {server} as it is, for everybody on the way to read: use https://"
            );
        }
        // It follows no redirect: another server must not get the key.
        let http = tls::client(&server.0).connect_timeout(ANSWER_TIMEOUT).read_timeout(ANSWER_TIMEOUT);
        // No proxy knows a way to this machine.
        let http = if server.is_here() { http.no_proxy() } else { http };
        let http =
            http.build().map_err(|why| anyhow::anyhow!(tls::reason(&why))).with_context(|| server.to_string())?;
        Ok(Client { http, server, key, has_answered: AtomicBool::new(false), has_warned: AtomicBool::new(false) })
    }

    /// The service's address.
    pub(crate) fn server(&self) -> &Address {
        &self.server
    }

    /// Gets the JSON at a path.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.retry_while_unavailable(async || self.call(Method::GET, path, &HeaderMap::new(), None).await).await
    }

    /// Posts a body, or none. The call must be idempotent, by its nature or by its headers: it may be sent twice.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        headers: &HeaderMap,
        body: Option<&Value>,
    ) -> Result<T, Error> {
        self.retry_while_unavailable(async || self.call(Method::POST, path, headers, body).await).await
    }

    /// Reads the file at a path from its byte `from` on, if the file's ETag is this SHA-256.
    pub(crate) async fn file(&self, path: &str, from: u64, etag: &str) -> Result<Response, Error> {
        let mut headers = HeaderMap::new();
        let mut set = |name, value: String| {
            headers.insert(name, value.parse().expect("numbers and hashes are valid header values"));
        };
        set(header::RANGE, format!("bytes={from}-"));
        set(header::IF_RANGE, format!("\"{etag}\""));
        // A file of any length may take its time.
        let answer =
            self.retry_while_unavailable(async || self.answer(Method::GET, path, &headers, None, None).await).await?;
        match answer.status().as_u16() {
            206 => Ok(answer),
            status => Err(self.foreign(status)),
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Option<&Value>,
    ) -> Result<T, Error> {
        let answer = self.answer(method, path, headers, body, Some(4 * ANSWER_TIMEOUT)).await?;
        let status = answer.status().as_u16();
        let body = match body_of(answer).await {
            Ok(body) => body,
            Err(cause) if cause.is::<LengthLimitError>() => return Err(self.foreign(status)),
            Err(cause) => return Err(self.unreachable(cause.as_ref())),
        };
        answer_from_json(&body).ok_or_else(|| self.foreign(status))
    }

    /// Makes a call, and takes every status but success for an error.
    async fn answer(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Option<&Value>,
        timeout: Option<Duration>,
    ) -> Result<Response, Error> {
        let mut request = self.http.request(method, format!("{}{path}", self.server)).headers(headers.clone());
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.reveal());
        }
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
        }
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        let answer = request.send().await.map_err(|cause| self.unreachable(&cause))?;
        if answer.status().is_success() {
            self.has_answered.store(true, Ordering::Relaxed);
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
        let body = body_of(answer).await.unwrap_or_default();
        let Some(Problem { code, detail, jobs }) = answer_from_json(&body) else { return Err(self.foreign(status)) };
        self.has_answered.store(true, Ordering::Relaxed);
        Err(Error::Refused { status, code, detail, jobs, retry_after: retry_after.map(Duration::from_secs) })
    }

    fn unreachable(&self, cause: &(dyn StdError + 'static)) -> Error {
        Error::Unreachable { server: self.server.clone(), why: tls::reason(cause) }
    }

    fn foreign(&self, status: u16) -> Error {
        Error::Foreign { server: self.server.clone(), status }
    }

    /// The error of an answer whose bytes stopped coming.
    pub(crate) fn broken(&self, cause: &reqwest::Error) -> Error {
        Error::Broken { server: self.server.clone(), why: tls::reason(cause) }
    }

    /// Makes a call, again while the service is unavailable or busy, for [`RETRY_TIMEOUT`] at most.
    async fn retry_while_unavailable<T>(&self, call: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(250);
        loop {
            let error = match call().await {
                Err(error) if error.may_pass() && self.has_answered.load(Ordering::Relaxed) => error,
                Ok(done) => {
                    self.has_warned.store(false, Ordering::Relaxed);
                    return Ok(done);
                }
                Err(error) => return Err(error),
            };
            let rest = match &error {
                Error::Refused { retry_after: Some(after), .. } => (*after).max(pause),
                _ => pause,
            };
            if begun.elapsed() + rest > RETRY_TIMEOUT {
                return Err(error);
            }
            // A rate limit is no trouble: the user isn't told.
            let is_limit = matches!(error, Error::Refused { status: 429, .. });
            if !is_limit && !self.has_warned.swap(true, Ordering::Relaxed) {
                eprintln!("cdc-export: {error}. Trying again for {} seconds.", RETRY_TIMEOUT.as_secs());
            }
            sleep(rest).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}

/// An answer's whole body, if it isn't too long.
async fn body_of(answer: Response) -> Result<Bytes, Box<dyn StdError + Send + Sync>> {
    Ok(Limited::new(Body::from(answer), MOST_BYTES).collect().await?.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (good, address) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://localhost:8080/", "http://localhost:8080"),
            ("https://data.example.com/cdc/", "https://data.example.com/cdc"),
            ("http://[::1]:80", "http://[::1]:80"),
        ] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), address);
        }
        for bad in [
            "",
            "localhost:8080",
            "/exports",
            "ftp://host/",
            "http://me:secret@host/",
            "http://host/?a=b",
            "http://",
            "http://host/#x",
            "http://host:99999",
            "http://host:",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
