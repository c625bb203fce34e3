//! The HTTP clients of a bucket: for requests to its store, and to the services that give credentials for it.
//!
//! The clients that `object_store` makes by itself follow redirects, with the session token in a header or a shared
//! access signature in `Referer`. They also read answers of any length into memory.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use http_body_util::{BodyExt, Limited};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use reqwest::Method;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use uuid::Uuid;

/// The largest body of an answer that refuses a request or confirms a write, in bytes.
const ANSWER_BYTES: usize = 1 << 20;
/// The largest body of another answer, in bytes: a manifest, or a page of a list. A page of Azure has 5,000 names.
const SMALL_OBJECT_BYTES: usize = 32 << 20;

/// Makes the HTTP clients of one kind of requests.
#[derive(Clone, Copy, Debug)]
pub(super) enum Connector {
    /// Limits every body.
    Small,
    /// Limits every body except for those of objects.
    Objects,
}

impl HttpConnector for Connector {
    /// Ignores all options but the timeouts and the permission of `http://`, because no variable sets another one.
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allows_http = options.get_config_value(&ClientConfigKey::AllowHttp).as_deref().map(is_true).transpose()?;
        let time = |key| {
            let Some(text) = options.get_config_value(&key) else { return Ok(None) };
            let unknown = || generic(std::io::Error::other(format!("`{text}` is no duration")));
            humantime::parse_duration(&text).map(Some).map_err(|_| unknown())
        };
        // The certificates are needed even if the endpoint is http://, because the service that gives credentials may
        // be https://.
        let mut client = http_client::client("https:")
            .https_only(allows_http != Some(true))
            .http1_only()
            // A compressed body has another length than the object.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .dns_resolver(Arc::new(ShuffledAddresses));
        if let Some(time) = time(ClientConfigKey::Timeout)? {
            client = client.timeout(time);
        }
        if let Some(time) = time(ClientConfigKey::ConnectTimeout)? {
            client = client.connect_timeout(time);
        }
        if let Some(time) = time(ClientConfigKey::ReadTimeout)? {
            client = client.read_timeout(time);
        }
        let client = client.build().map_err(generic)?;
        Ok(HttpClient::new(BoundedClient { client, connector: *self }))
    }
}

/// Parses the words with which `object_store` allows and forbids something.
fn is_true(text: &str) -> object_store::Result<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "on" | "yes" | "y" => Ok(true),
        "0" | "false" | "off" | "no" | "n" => Ok(false),
        _ => Err(generic(std::io::Error::other(format!("`{text}` is neither true nor false")))),
    }
}

fn generic(error: impl std::error::Error + Send + Sync + 'static) -> object_store::Error {
    object_store::Error::Generic { store: "HTTP", source: Box::new(error) }
}

/// An answer that the service doesn't read.
#[derive(Debug, thiserror::Error)]
enum UnreadAnswer {
    #[error("the store answers {0}, and no redirect is followed: the endpoint or the region is wrong")]
    Redirect(String),
    #[error("the store's answer has more than {0} bytes")]
    TooLong(usize),
}

/// An HTTP client that follows no redirect, and limits the bodies of answers.
#[derive(Debug)]
struct BoundedClient {
    client: reqwest::Client,
    connector: Connector,
}

#[async_trait]
impl HttpService for BoundedClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_get = request.method() == Method::GET;
        let answer = self.client.call(request).await?;
        let status = answer.status();
        if status.is_redirection() && status.as_u16() != 304 {
            return Err(HttpError::new(HttpErrorKind::Decode, UnreadAnswer::Redirect(status.to_string())));
        }
        let most = match self.connector {
            Connector::Objects if is_get && status.is_success() => return Ok(answer),
            Connector::Small if is_get && status.is_success() => SMALL_OBJECT_BYTES,
            _ => ANSWER_BYTES,
        };
        Ok(answer.map(|body| HttpResponseBody::new(Limited::new(body, most).map_err(move |error| failed(error, most)))))
    }
}

/// Returns the error of a limited body: that of the body itself, or that of the limit.
fn failed(error: Box<dyn std::error::Error + Send + Sync>, most: usize) -> HttpError {
    match error.downcast() {
        Ok(error) => *error,
        Err(_) => HttpError::new(HttpErrorKind::Decode, UnreadAnswer::TooLong(most)),
    }
}

/// The system's resolver, with the addresses of a name in random order. So connections are spread over the servers of a
/// store.
#[derive(Debug)]
struct ShuffledAddresses;

impl Resolve for ShuffledAddresses {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            addresses.sort_by_cached_key(|_| Uuid::new_v4());
            Ok::<Addrs, Box<dyn std::error::Error + Send + Sync>>(Box::new(addresses.into_iter()))
        })
    }
}
