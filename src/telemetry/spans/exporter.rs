//! The recorder: collects spans and posts them to the collector in a separate thread, so that exports do not wait.
//! Spans that cannot be sent are lost, and the loss is logged.

use std::collections::HashMap;
use std::error::Error;
use std::future::ready;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{self, SdkTracer, SdkTracerProvider};
use reqwest::{Body, Client};
use tokio::runtime::{self, Runtime};

use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::spans::settings::{Sampler, Settings};
use pg_session::failure::chain;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit at the end of the process for sending the remaining spans.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of bytes read from a response.
const ANSWER_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) tracer: SdkTracer,
    provider: SdkTracerProvider,
}

impl Recorder {
    pub(super) fn end(&self) {
        // A failed post is logged elsewhere. This line logs spans whose post did not start in time.
        if let Err(error) = self.provider.shutdown_with_timeout(END_TIMEOUT) {
            tracing::warn!(event = "traces_failed", error = chain(&error), "the last spans were not sent");
        }
    }
}

pub(super) fn recorder(settings: &Settings) -> Result<Recorder, String> {
    let poster = Poster::new(&settings.endpoint).map_err(|why| why.to_string())?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(poster)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&settings.endpoint)
        .with_timeout(failpoint::time("spans.post", TIMEOUT))
        .with_headers(settings.headers.iter().cloned().collect::<HashMap<_, _>>())
        .build()
        // The reason may contain the URL, and the URL may contain a key.
        .map_err(|_| "the URL or the headers are invalid".to_owned())?;
    let attributes = settings.attributes.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    let resource = Resource::builder_empty()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()))
        .with_attributes(attributes)
        .with_service_name(settings.service_name.clone())
        .build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(sampler(settings.sampler))
        .with_resource(resource)
        .build();
    Ok(Recorder { tracer: provider.tracer("cdc-export"), provider })
}

fn sampler(Sampler { part, follows_caller }: Sampler) -> trace::Sampler {
    let own = trace::Sampler::TraceIdRatioBased(part);
    if follows_caller { trace::Sampler::ParentBased(Box::new(own)) } else { own }
}

/// Posts to the collector. Calls block, but only in the recorder's own thread.
#[derive(Debug)]
struct Poster {
    client: Result<Client, String>,
    /// Runs the client in that thread, because it has no other runtime.
    runtime: Runtime,
    throttle: LogThrottle,
}

impl Poster {
    fn new(endpoint: &str) -> std::io::Result<Poster> {
        // Idle connections are not kept, because nothing would detect that they were closed.
        let limit = failpoint::time("spans.post", TIMEOUT);
        let client = http_client::client(endpoint).timeout(limit).pool_max_idle_per_host(0).build();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Poster {
            client: client.map_err(|why| http_client::reason(&why)),
            runtime,
            throttle: LogThrottle::default(),
        })
    }

    async fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Box<dyn Error + Send + Sync>> {
        let answer = self.client.clone()?.execute(request.try_into()?).await?;
        let status = answer.status();
        let mut response = Response::new(Limited::new(Body::from(answer), ANSWER_BYTES).collect().await?.to_bytes());
        *response.status_mut() = status;
        Ok(response)
    }

    fn warn_throttled(&self, error: String) {
        if let Some(times) = self.throttle.should_log(error.clone()) {
            tracing::warn!(event = "traces_failed", error, times, "the collector did not accept spans, which are lost");
        }
    }
}

impl HttpClient for Poster {
    fn send_bytes<'l, 'f>(
        &'l self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        'l: 'f,
        Self: 'f,
    {
        let posted = self.runtime.block_on(self.post(request));
        match &posted {
            Ok(answer) if !answer.status().is_success() => {
                self.warn_throttled(format!("the collector responded with {}", answer.status()))
            }
            Ok(_) => {}
            Err(why) => self.warn_throttled(http_client::reason(why.as_ref())),
        }
        Box::pin(ready(posted))
    }
}
