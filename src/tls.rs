//! TLS and the HTTP client of all that call others: whose code does TLS, whose certificates count, and why a call got
//! no answer.

use std::error::Error;
use std::io;

use reqwest::ClientBuilder;
use reqwest::redirect::Policy;

/// Has `ring` do what TLS needs, unless the process has somebody for that already.
pub fn provide() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The beginnings of a client that calls this address. It trusts whom the system trusts, and follows no redirect.
pub fn client(url: &str) -> ClientBuilder {
    provide();
    let client = ClientBuilder::new()
        .redirect(Policy::none())
        .referer(false)
        .user_agent(concat!("cdc-export/", env!("CARGO_PKG_VERSION")));
    // The client reads the system's certificates when it is built, and fails if there are none. Plain HTTP needs none.
    let is_plain = url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:"));
    if is_plain { client.tls_certs_only([]) } else { client }
}

/// Why a call got no answer: the innermost cause, without the address, which may hold a token.
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
        // The standard library has no kind of its own for what the resolver says.
        _ if text.contains("lookup address") => format!("the host is not known ({text})"),
        _ => text,
    }
}
