//! A remote service, called over HTTP.
//!
//! Each call is idempotent: a submission carries an idempotency key. After the first answer of the service, a call is
//! retried while the network fails, or while the service restarts or is busy.

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Request, Response, Uri, header};
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep};
use url::{Host, Position, Url};

use crate::answer::{AnswerBody, ApiAnswer, CallError};
use crate::observer::Observer;
use crate::{About, Error};
use http_client::pause::Backoff;

const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSES: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
/// The time that a call waits for the next byte. The service answers within 2 seconds, even if the answer is an error.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The address of a service: `http://host:port`, and the path prefix of a proxy.
#[derive(Clone, Debug)]
pub struct ServiceAddress {
    text: String,
    url: Url,
}

const INVALID_ADDRESS: &str = "not the address of a service, such as http://127.0.0.1:8080";

impl FromStr for ServiceAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<ServiceAddress, &'static str> {
        let uri: Uri = text.parse().map_err(|_| INVALID_ADDRESS)?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        // An address with a user and a password is refused, because `ps` would show them.
        let is_plain = uri.authority().is_some_and(|authority| {
            let port = authority.as_str().trim_start_matches(authority.host());
            !authority.as_str().contains('@') && (port.is_empty() || authority.port_u16().is_some())
        });
        if !is_web || !is_plain || text.contains(['?', '#']) {
            return Err(INVALID_ADDRESS);
        }
        let url = text.parse().map_err(|_| INVALID_ADDRESS)?;
        Ok(ServiceAddress { text: text.trim_end_matches('/').to_owned(), url })
    }
}

impl ServiceAddress {
    /// Returns true if the connection leaves this machine unencrypted.
    pub fn is_unencrypted_remote(&self) -> bool {
        self.is_unencrypted() && !self.is_loopback_address()
    }

    fn is_unencrypted(&self) -> bool {
        self.url.scheme() == "http"
    }

    /// Makes a client for calls to this address. It follows no redirect, because another server must not get the key.
    fn builder(&self) -> reqwest::ClientBuilder {
        let client = http_client::client(&self.text).connect_timeout(ANSWER_TIMEOUT).read_timeout(ANSWER_TIMEOUT);
        // A proxy can't reach this machine.
        if self.is_loopback_address() { client.no_proxy() } else { client }
    }

    /// Returns the addresses of the host. Returns none if they aren't known here.
    async fn resolve(&self) -> Vec<SocketAddr> {
        let port = self.url.port_or_known_default().unwrap_or_default();
        tokio::net::lookup_host((self.host(), port)).await.map_or(Vec::new(), Iterator::collect)
    }

    fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// Returns the address of a URL to which the service redirects, without the query, which has a signature. Returns
    /// `None` if the connection would be less safe than that to the service, or would reach this machine from another.
    fn redirection(&self, url: &str) -> Option<ServiceAddress> {
        let (address, _) = url.split_once('?').unwrap_or((url, ""));
        let address = address.parse::<ServiceAddress>().ok()?;
        let is_safe = !address.is_unencrypted() || self.is_unencrypted();
        (is_safe && (!address.is_local() || self.is_local())).then_some(address)
    }

    /// Returns true if the address is a loopback or link-local one, in any notation of URLs. Doesn't resolve names.
    fn is_local(&self) -> bool {
        match self.url.host() {
            Some(Host::Domain(name)) => name.trim_end_matches('.').rsplit('.').next() == Some("localhost"),
            Some(Host::Ipv4(ip)) => is_local(ip.into()),
            Some(Host::Ipv6(ip)) => is_local(ip.into()),
            None => false,
        }
    }

    fn authority(&self) -> &str {
        &self.url[Position::BeforeHost..Position::AfterPort]
    }

    fn is_loopback_address(&self) -> bool {
        let host = self.host();
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

fn answered(response: reqwest::Response) -> Response<AnswerBody> {
    Response::from(response).map(|body| body.map_err(Into::into).boxed_unsync())
}

fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified(),
    }
}

impl Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

pub struct RemoteService {
    http: reqwest::Client,
    server: ServiceAddress,
    key: Option<String>,
    observer: Arc<dyn Observer>,
    /// The client for the bucket to which the service redirects downloads. The service has one bucket.
    bucket: OnceLock<reqwest::Client>,
    /// True if the service has answered once. Before that, no call is retried, because the address may be wrong.
    has_answered: AtomicBool,
    /// True if the user was notified that the service doesn't answer now.
    has_warned: AtomicBool,
}

impl RemoteService {
    /// Creates a client of the service at an address. Each call carries the key.
    pub fn new(
        server: ServiceAddress,
        key: Option<String>,
        observer: Arc<dyn Observer>,
    ) -> Result<RemoteService, Error> {
        let http =
            server.builder().build().map_err(|why| Error::refused(http_client::reason(&why))).about(|| &server)?;
        let (has_answered, has_warned) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(RemoteService { http, server, key, observer, bucket: OnceLock::new(), has_answered, has_warned })
    }

    pub fn address(&self) -> &ServiceAddress {
        &self.server
    }

    pub(crate) async fn call<T>(
        &self,
        call: &Request<String>,
        read: impl AsyncFn(ApiAnswer) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        self.retry_while_unavailable(async || read(self.send(call).await?).await).await
    }

    /// Requests the rest of a file, beginning at offset `from`, at the address to which the service redirects the
    /// download. The answer may be the whole file. The request doesn't have the key, and no further redirect is
    /// followed.
    pub(crate) async fn file_at(&self, url: &str, from: u64) -> Result<ApiAnswer, CallError> {
        let unsafe_redirect = || CallError::UnsafeRedirect { server: self.server.to_string() };
        let address = self.server.redirection(url).ok_or_else(unsafe_redirect)?;
        let host = address.authority().to_owned();
        let unreachable =
            |cause: &reqwest::Error| CallError::Unreachable { server: host.clone(), why: http_client::reason(cause) };
        let client = match self.bucket.get() {
            Some(client) => client,
            None => {
                let mut client = address.builder();
                if !self.server.is_local() {
                    // A name may stand for this machine. Without an answer, a proxy may know the name.
                    let resolved: Vec<_> = address.resolve().await;
                    if resolved.iter().any(|found| is_local(found.ip())) {
                        return Err(unsafe_redirect());
                    }
                    client = client.resolve_to_addrs(address.host(), &resolved);
                }
                let client = client.build().map_err(|cause| unreachable(&cause))?;
                self.bucket.get_or_init(|| client)
            }
        };
        self.retry_while_unavailable(async || {
            let mut request = client.get(url);
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let response = request.send().await.map_err(|cause| unreachable(&cause))?;
            match response.status().as_u16() {
                200 | 206 => Ok(ApiAnswer { server: host.clone(), response: answered(response) }),
                status => Err(CallError::Bucket { host: host.clone(), status }),
            }
        })
        .await
    }

    async fn send(&self, call: &Request<String>) -> Result<ApiAnswer, CallError> {
        let server = self.server.to_string();
        let request = self.http.request(call.method().clone(), format!("{server}{}", call.uri()));
        let request = request.headers(call.headers().clone()).body(call.body().clone());
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = match request.send().await {
            Ok(response) => answered(response),
            Err(cause) => return Err(CallError::Unreachable { server, why: http_client::reason(&cause) }),
        };
        if response.status().is_success() {
            self.has_answered.store(true, Ordering::Relaxed);
        }
        Ok(ApiAnswer { server, response })
    }

    /// Makes a call. Retries it while the service is unavailable or busy, for [`RETRY_TIMEOUT`] at most.
    async fn retry_while_unavailable<T>(&self, call: impl AsyncFn() -> Result<T, CallError>) -> Result<T, CallError> {
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
            if matches!(error, CallError::Refused { .. }) {
                self.has_answered.store(true, Ordering::Relaxed);
            }
            if !(error.may_pass() && self.has_answered.load(Ordering::Relaxed)) {
                return Err(error);
            }
            let pause = backoff.next_pause();
            let rest = match &error {
                CallError::Refused { retry_after: Some(after), .. } => (*after).max(pause),
                _ => pause,
            };
            // The service chooses `rest`, so a sum could overflow.
            if rest > RETRY_TIMEOUT.saturating_sub(begun.elapsed()) {
                return Err(error);
            }
            // A rate limit is not a fault, so the user is not notified.
            let is_limit = matches!(error, CallError::Refused { status: 429, .. });
            if !is_limit && !self.has_warned.swap(true, Ordering::Relaxed) {
                self.observer.notice(&format!("{error}. Trying again for {} seconds.", RETRY_TIMEOUT.as_secs()));
            }
            sleep(rest).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_is_redirected_neither_to_http_nor_to_this_machine() {
        for (server, url, host) in [
            ("https://service", "http://bucket/a?signature=b", None),
            ("https://service", "HTTP://bucket/a", None),
            ("https://service", "https://bucket:8443/a?signature=b", Some("bucket:8443")),
            ("http://service", "http://bucket/a?signature=b", Some("bucket")),
            ("http://service", "https://bucket/a", Some("bucket")),
            ("http://service", "https://name:password@bucket/a", None),
            ("http://service", "file:///etc/passwd", None),
            ("http://service", "/a", None),
            ("http://service", "http://LOCALHOST.:9000/a", None),
            ("http://service", "http://2130706433/a", None),
            ("http://service", "http://[::ffff:127.0.0.1]/a", None),
            ("http://service", "http://169.254.169.254/latest", None),
            ("http://127.0.0.1:8080", "http://localhost:9000/a", Some("localhost:9000")),
        ] {
            let redirection = server.parse::<ServiceAddress>().unwrap().redirection(url);
            assert_eq!(redirection.as_ref().map(ServiceAddress::authority), host, "{server} {url}");
        }
    }

    #[test]
    fn addresses_are_http_urls_without_credentials() {
        for (good, address) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://localhost:8080/", "http://localhost:8080"),
            ("https://data.example.com/cdc/", "https://data.example.com/cdc"),
            ("http://[::1]:80", "http://[::1]:80"),
        ] {
            assert_eq!(good.parse::<ServiceAddress>().unwrap().to_string(), address);
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
            assert!(bad.parse::<ServiceAddress>().is_err(), "{bad}");
        }
    }
}
