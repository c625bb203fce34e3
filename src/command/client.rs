//! A service elsewhere, spoken to over its API.
//!
//! Each call may be sent again without harm: one that makes a job has a key by which the service knows it. So a network that fails,
//! a service that restarts and one that is busy are waited for, once there was an answer at all.

use std::fmt::{self, Display};
use std::io::Read;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cdc_export::config::ApiKey;
use cdc_export::http::answer_from_json;
use cdc_export::telemetry::chain;
use hyper::http::{HeaderMap, Method, Request, Response, Uri, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};
use uuid::Uuid;

/// How long one thing is tried.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// Without a byte from the service for so long a call has failed. It answers within 2 seconds, if only that it can't.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// An answer that is no file is at most this long: a page of jobs has some 200 kB.
const MOST_BYTES: u64 = 16 << 20;

/// Where a service is: `http://host:port`, with a path before the API's own where a proxy puts one.
#[derive(Clone, Debug)]
pub(crate) struct Address(String);

/// A text that is none.
#[derive(Debug, thiserror::Error)]
#[error("not the address of a service, such as http://127.0.0.1:8080")]
pub(crate) struct NotAnAddress;

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Address, NotAnAddress> {
        let uri: Uri = text.parse().map_err(|_| NotAnAddress)?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        // A name and a password in it would be shown by `ps`.
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

impl Address {
    /// Whether everybody on the way to it can read what is sent.
    fn is_readable_on_the_way(&self) -> bool {
        self.0.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:")) && !self.is_here()
    }

    /// Whether it is on this machine.
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
    #[error("{server} can't be reached: {}; is a service running there?", chain(.cause))]
    Unreachable { server: Address, cause: ureq::Error },
    #[error("the connection to {server} broke: {cause}")]
    Broken { server: Address, cause: std::io::Error },
    #[error("{detail}{}", next_step(.code))]
    Refused { status: u16, code: Plain, detail: Plain, jobs: Vec<NamedJob>, retry_after: Option<Duration> },
    #[error("{server} answers {status}, and not as cdc-export does: is the address right?")]
    Foreign { server: Address, status: u16 },
}

/// What a refused client can do, where the detail doesn't say it.
fn next_step(code: &str) -> &'static str {
    match code {
        "key_required" => {
            "; put a key into CDC_EXPORT_KEY: `cdc-export keys create`, run where the service is, prints one"
        }
        "key_invalid" => {
            "; the one in CDC_EXPORT_KEY is of no use: `cdc-export keys list`, run where the service is, says why"
        }
        "host_not_local" => "; there, AUTH=keys opens it to those who have a key",
        _ => "",
    }
}

impl Error {
    /// Whether it was too late for what was asked.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Error::Refused { status: 409, .. })
    }

    /// Whether the same call may get another answer later.
    fn may_pass(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Broken { .. } => true,
            Error::Refused { status, .. } => matches!(status, 429 | 503),
            // What stands in front of a service that restarts.
            Error::Foreign { status, .. } => matches!(status, 502..=504),
        }
    }
}

/// A service's text. What would steer a terminal is left out of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "String")]
pub(crate) struct Plain(String);

impl From<String> for Plain {
    fn from(text: String) -> Plain {
        Plain(text.chars().filter(|c| !c.is_control()).collect())
    }
}

impl std::ops::Deref for Plain {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A problem, as far as it is of use here.
#[derive(Deserialize)]
struct Problem {
    code: Plain,
    detail: Plain,
    #[serde(default)]
    jobs: Vec<NamedJob>,
}

/// An export that a refusal names.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NamedJob {
    pub(crate) job_id: Uuid,
    pub(crate) status: Plain,
}

/// Speaks to one service.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    agent: Agent,
    /// For answers of any length.
    agent_of_files: Agent,
    server: Address,
    key: Option<ApiKey>,
    /// Whether there was an answer of the service: an address that is wrong is not waited for.
    has_answered: Arc<AtomicBool>,
    /// Whether somebody was told that it doesn't answer now.
    has_complained: Arc<AtomicBool>,
}

impl Client {
    /// Speaks to the service at an address, and shows it the key. Says so beforehand if others could read that.
    pub(crate) fn new(server: Address, key: Option<ApiKey>) -> Client {
        if key.is_some() && server.is_readable_on_the_way() {
            eprintln!(
                "cdc-export: warning: the key goes to {server} as it is, for everybody on the way to read: use https://"
            );
        }
        // One for the process; refused if there is one already, which will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = |whole: Option<Duration>| {
            let config = Agent::config_builder()
                .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
                .http_status_as_error(false)
                // A key is for the one whom it was meant for.
                .max_redirects(0)
                .timeout_connect(Some(ANSWER_TIMEOUT))
                .timeout_recv_response(Some(ANSWER_TIMEOUT))
                .timeout_per_read(Some(ANSWER_TIMEOUT))
                .timeout_global(whole);
            // No proxy knows a way to this machine.
            let config = if server.is_here() { config.proxy(None) } else { config };
            config.build().into()
        };
        let (agent, agent_of_files) = (agent(Some(4 * ANSWER_TIMEOUT)), agent(None));
        let (has_answered, has_complained) = (Arc::default(), Arc::default());
        Client { agent, agent_of_files, server, key, has_answered, has_complained }
    }

    /// Whose service it is, for people.
    pub(crate) fn server(&self) -> &Address {
        &self.server
    }

    /// What is at a path.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.retry_while_unavailable(|| self.call(Method::GET, path, &HeaderMap::new(), None))
    }

    /// Sends a body, or none. The headers, or the call itself, must make it harmless to be sent twice.
    pub(crate) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        headers: &HeaderMap,
        body: Option<&Value>,
    ) -> Result<T, Error> {
        self.retry_while_unavailable(|| self.call(Method::POST, path, headers, body))
    }

    /// The bytes of a file from `from` on, of that file alone which has this tag, a SHA-256.
    pub(crate) fn file(&self, path: &str, from: u64, etag: &str) -> Result<impl Read + use<>, Error> {
        let mut headers = HeaderMap::new();
        let mut set = |name, value: String| {
            headers.insert(name, value.parse().expect("numbers and hashes are valid header values"));
        };
        set(header::RANGE, format!("bytes={from}-"));
        set(header::IF_RANGE, format!("\"{etag}\""));
        let answer =
            self.retry_while_unavailable(|| self.answer(&self.agent_of_files, Method::GET, path, &headers, None))?;
        match answer.status().as_u16() {
            206 => Ok(answer.into_body().into_reader()),
            status => Err(self.foreign(status)),
        }
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Option<&Value>,
    ) -> Result<T, Error> {
        let answer = self.answer(&self.agent, method, path, headers, body)?;
        let status = answer.status().as_u16();
        let body = match answer.into_body().into_with_config().limit(MOST_BYTES).read_to_vec() {
            Ok(body) => body,
            Err(ureq::Error::BodyExceedsLimit(_)) => return Err(self.foreign(status)),
            Err(cause) => return Err(Error::Unreachable { server: self.server.clone(), cause }),
        };
        answer_from_json(&body).ok_or_else(|| self.foreign(status))
    }

    /// An answer that is no problem.
    fn answer(
        &self,
        agent: &Agent,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Option<&Value>,
    ) -> Result<Response<Body>, Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.server));
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", key.reveal()));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let sent = match body {
            Some(body) => agent.run(request.body(body.to_string()).expect("its parts were made as such")),
            None => agent.run(request.body(()).expect("its parts were made as such")),
        };
        let answer = sent.map_err(|cause| Error::Unreachable { server: self.server.clone(), cause })?;
        if answer.status().is_success() {
            self.has_answered.store(true, Ordering::Relaxed);
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
        let body = answer.into_body().into_with_config().limit(MOST_BYTES).read_to_vec().unwrap_or_default();
        let Some(Problem { code, detail, jobs }) = answer_from_json(&body) else { return Err(self.foreign(status)) };
        self.has_answered.store(true, Ordering::Relaxed);
        Err(Error::Refused { status, code, detail, jobs, retry_after: retry_after.map(Duration::from_secs) })
    }

    fn foreign(&self, status: u16) -> Error {
        Error::Foreign { server: self.server.clone(), status }
    }

    /// That the bytes of an answer stopped coming.
    pub(crate) fn broken(&self, cause: std::io::Error) -> Error {
        Error::Broken { server: self.server.clone(), cause }
    }

    /// Tries a call until it gets an answer that lasts.
    fn retry_while_unavailable<T>(&self, call: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(250);
        loop {
            let error = match call() {
                Err(error) if error.may_pass() && self.has_answered.load(Ordering::Relaxed) => error,
                Ok(done) => {
                    self.has_complained.store(false, Ordering::Relaxed);
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
            // A limit of requests is nothing to worry about.
            let is_limit = matches!(error, Error::Refused { status: 429, .. });
            if !is_limit && !self.has_complained.swap(true, Ordering::Relaxed) {
                eprintln!("cdc-export: {error}. Trying again for {} seconds.", RETRY_TIMEOUT.as_secs());
            }
            sleep(rest);
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
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
