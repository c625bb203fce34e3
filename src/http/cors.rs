//! CORS: the origins whose web pages may call the API from a browser. The operator lists them; the default is none.
//!
//! `*` is not supported. It would open a service without keys to every page displayed in a browser on this machine.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::uri::{Scheme, Uri};
use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::CorsLayer;

use crate::http::{REQUEST_ID, traces};

/// Time for which a browser caches the result of a preflight request.
const MAX_AGE: Duration = Duration::from_secs(600);

const CONSUMER: HeaderName = HeaderName::from_static("x-consumer-id");
const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The origins whose pages may call the API, as browsers write them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Arc<[HeaderValue]>);

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Origins, String> {
        let expected =
            "http or https, a host and perhaps a port, as https://app.example.com; each is listed, there is no `*`";
        let read = |text: &str| origin(text).ok_or_else(|| format!("`{text}` is no origin: {expected}"));
        text.split(',').map(str::trim).map(read).collect::<Result<_, _>>().map(Origins)
    }
}

/// Normalizes an origin as browsers write it (RFC 6454): in lower case, without the default port of its scheme.
fn origin(text: &str) -> Option<HeaderValue> {
    let uri: Uri = text.parse().ok()?;
    let (scheme, authority) = (uri.scheme()?, uri.authority()?);
    let own_port = match scheme {
        scheme if *scheme == Scheme::HTTP => 80,
        scheme if *scheme == Scheme::HTTPS => 443,
        _ => return None,
    };
    // Browsers never send a trailing slash, a path, a user name or a pattern.
    let whole = text.len() == scheme.as_str().len() + "://".len() + authority.as_str().len();
    let is_host = authority.host().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte));
    if !whole || !is_host || authority.as_str().contains('@') {
        return None;
    }
    let port = match (authority.as_str().strip_prefix(authority.host())?, authority.port_u16()) {
        ("", _) => String::new(),
        (_, Some(port)) if port == own_port => String::new(),
        (_, Some(port)) => format!(":{port}"),
        (_, None) => return None,
    };
    format!("{scheme}://{}{port}", authority.host()).to_ascii_lowercase().parse().ok()
}

impl Origins {
    pub(crate) fn contains(&self, origin: &HeaderValue) -> bool {
        self.0.contains(origin)
    }

    pub(crate) fn layer(&self) -> Option<CorsLayer> {
        let layer = CorsLayer::new()
            .allow_origin(self.0.to_vec())
            .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
            .allow_headers([
                header::AUTHORIZATION,
                header::CONTENT_TYPE,
                header::RANGE,
                header::IF_MATCH,
                header::IF_RANGE,
                header::IF_NONE_MATCH,
                CONSUMER,
                KEY,
                REQUEST_ID,
                traces::HEADER,
            ])
            .expose_headers([
                header::LOCATION,
                header::RETRY_AFTER,
                header::ETAG,
                header::CONTENT_DISPOSITION,
                header::CONTENT_RANGE,
                header::ACCEPT_RANGES,
                header::WWW_AUTHENTICATE,
                REQUEST_ID,
            ])
            .max_age(MAX_AGE);
        (!self.0.is_empty()).then_some(layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_normalized_as_browsers_write_them() {
        let read = |text: &str| text.parse::<Origins>().map(|origins| origins.0.to_vec());
        for (text, origin) in [
            ("https://app.example.com", "https://app.example.com"),
            ("HTTPS://App.Example.com:443", "https://app.example.com"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://localhost:80", "http://localhost"),
            ("http://[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(read(text).unwrap(), [origin], "{text}");
        }
        assert_eq!(read("http://a , http://b").unwrap(), ["http://a", "http://b"]);
        for bad in [
            "*",
            "null",
            "https://a/path",
            "https://u@a",
            "https://a:",
            "file:///a",
            "https://*.example.com",
            "http://a,",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
