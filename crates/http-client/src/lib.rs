#![doc = include_str!("../README.md")]

pub mod pause;

use std::error::Error;
use std::io;
use std::time::Duration;

use reqwest::ClientBuilder;
use reqwest::redirect::Policy;

/// The time after which a client closes an idle connection. Servers close theirs after 5 seconds (Node.js) or 10 (this
/// service). A request over a connection that the server is just closing fails.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Installs `ring` as the process's provider of cryptography for TLS, unless one is already installed.
pub fn provide() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Returns the builder of a client for this URL. The client trusts the system's authorities, and follows no redirect.
pub fn client(url: &str) -> ClientBuilder {
    provide();
    let client = ClientBuilder::new()
        .redirect(Policy::none())
        .referer(false)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .user_agent(concat!("cdc-export/", env!("CARGO_PKG_VERSION")));
    // The client reads the system's certificates when it is built, and fails if there are none. Plain HTTP does not
    // need them.
    let is_plain = url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:"));
    if is_plain { client.tls_certs_only([]) } else { client }
}

/// Returns the reason why a call got no response: the innermost cause, without the URL, which may contain a token.
pub fn reason(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        if cause.downcast_ref().is_some_and(reqwest::Error::is_timeout) {
            return "no answer in time".to_owned();
        }
        cause = next;
    }
    let text = cause.to_string();
    match cause.downcast_ref().map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => "the connection was closed".to_owned(),
        // The standard library has no error kind for a failure of the resolver.
        _ if text.contains("lookup address") => format!("the host is not known ({text})"),
        _ => text,
    }
}
