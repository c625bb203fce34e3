//! A client of a remote service's API.
//!
//! Each call may be sent again without harm: a submission carries an idempotency key. So once the service has answered at all,
//! the client retries while the network fails, or the service restarts or is busy.

use std::ffi::OsStr;
use std::fmt::{self, Display};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::config::ApiKey;
use crate::duration::Backoff;
use crate::tls;
use anyhow::{Context, anyhow};
use axum::body::Body;
use axum::response::Response;
use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use hyper::http::{Request, Uri};
use tokio::time::{Instant, sleep};

use crate::command::answer::{Answer, Error};

/// The time for which one call is retried.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSES: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
/// The time that a call waits for the next byte. The service answers within 2 seconds, if only that it can't.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// A service's address: `http://host:port`, with a path before the API's own where a proxy puts one.
#[derive(Clone, Debug)]
pub(crate) struct Address(String);

const NO_ADDRESS: &str = "not the address of a service, such as http://127.0.0.1:8080";

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Address, &'static str> {
        let uri: Uri = text.parse().map_err(|_| NO_ADDRESS)?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        // `ps` would show a name and a password in it.
        let is_plain = uri.authority().is_some_and(|authority| {
            let port = authority.as_str().trim_start_matches(authority.host());
            !authority.as_str().contains('@') && (port.is_empty() || authority.port_u16().is_some())
        });
        if is_web && is_plain && !text.contains(['?', '#']) {
            Ok(Address(text.trim_end_matches('/').to_owned()))
        } else {
            Err(NO_ADDRESS)
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
        value.to_str().ok_or(NO_ADDRESS).and_then(str::parse).map_err(refusal)
    }
}

impl Address {
    /// Returns true if everybody on the way to the service can read what is sent.
    fn is_readable_on_the_way(&self) -> bool {
        self.0.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:")) && !self.is_here()
    }

    /// Returns true if the address is on this machine.
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

/// Speaks to one service.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: Address,
    key: Option<ApiKey>,
    /// True if the service has answered once. Until then nothing is retried: the address may be wrong.
    has_answered: AtomicBool,
    /// True if the user was told that the service doesn't answer now.
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
        let http = http.build().map_err(|why| anyhow!(tls::reason(&why))).with_context(|| server.to_string())?;
        Ok(Client { http, server, key, has_answered: AtomicBool::new(false), has_warned: AtomicBool::new(false) })
    }

    /// The service's address.
    pub(crate) fn server(&self) -> &Address {
        &self.server
    }

    /// Makes a call. `read` takes what is wanted out of the answer.
    pub(crate) async fn call<T>(
        &self,
        call: &Request<String>,
        read: impl AsyncFn(Answer) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.retry_while_unavailable(async || read(self.send(call).await?).await).await
    }

    async fn send(&self, call: &Request<String>) -> Result<Answer, Error> {
        let server = self.server.to_string();
        let request = self.http.request(call.method().clone(), format!("{server}{}", call.uri()));
        let request = request.headers(call.headers().clone()).body(call.body().clone());
        let request = match &self.key {
            Some(key) => request.bearer_auth(key.reveal()),
            None => request,
        };
        let response = match request.send().await {
            Ok(response) => Response::from(response).map(Body::new),
            Err(cause) => return Err(Error::Unreachable { server, why: tls::reason(&cause) }),
        };
        if response.status().is_success() {
            self.has_answered.store(true, Ordering::Relaxed);
        }
        Ok(Answer { server, response })
    }

    /// Makes a call, again while the service is unavailable or busy, for [`RETRY_TIMEOUT`] at most.
    async fn retry_while_unavailable<T>(&self, call: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
        let begun = Instant::now();
        let mut backoff = PAUSES;
        loop {
            let error = match call().await {
                Err(error) => error,
                Ok(done) => {
                    self.has_warned.store(false, Ordering::Relaxed);
                    return Ok(done);
                }
            };
            if matches!(error, Error::Refused { .. }) {
                self.has_answered.store(true, Ordering::Relaxed);
            }
            if !(error.may_pass() && self.has_answered.load(Ordering::Relaxed)) {
                return Err(error);
            }
            let pause = backoff.next_pause();
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
