//! Spans: records the steps of requests and exports with their times, and sends them to an OTLP collector.
//!
//! Without a configured collector, nothing is recorded or allocated.

#[cfg(feature = "otel")]
mod exporter;
mod settings;

use std::sync::OnceLock;
use std::time::SystemTime;

use futures_util::future::Either;
use opentelemetry::trace::{
    FutureExt, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
};
use opentelemetry::{Context, KeyValue, Value};

use crate::trace::TraceParent;
use pg_session::failure::chain;

pub use opentelemetry::trace::SpanKind as Kind;
pub use settings::{Sampler, Settings};

/// The recorder of spans, after [`start`].
static RECORDER: OnceLock<Recorder> = OnceLock::new();

#[cfg(feature = "otel")]
use exporter::Recorder;
// Without the feature, there is no recorder.
#[cfg(not(feature = "otel"))]
use std::convert::Infallible as Recorder;

/// Starts to record spans for the collector in the settings. Must be called once per process.
///
/// # Errors
/// The reason why the settings are invalid.
#[cfg(feature = "otel")]
pub fn start(settings: &Settings) -> Result<(), String> {
    let recorder = exporter::recorder(settings)?;
    RECORDER.set(recorder).map_err(|_| "the recorder is already started".to_owned())
}

/// Sends the recorded spans and stops recording. Blocks until the collector has responded or the time limit has passed.
pub fn end() {
    #[cfg(feature = "otel")]
    if let Some(recorder) = RECORDER.get() {
        recorder.end();
    }
}

/// A span that ends when it is dropped. Contains `None` if nothing is recorded.
#[derive(Debug)]
pub struct Span(Option<Context>);

impl Span {
    /// Starts a span below `parent`, or a new trace if there is no parent.
    pub fn start(name: &str, kind: Kind, parent: Option<&TraceParent>) -> Span {
        Span::start_at(name, kind, parent, None)
    }

    /// Starts a span, optionally at a time in the past.
    pub fn start_at(name: &str, kind: Kind, parent: Option<&TraceParent>, begun: Option<SystemTime>) -> Span {
        Span(RECORDER.get().map(|recorder| {
            let parent =
                parent.map_or_else(Context::new, |place| Context::new().with_remote_span_context(context_of(place)));
            begin(recorder, name, kind, &parent, begun)
        }))
    }

    /// Records a finished child span that started at `begun` and ends now.
    pub fn step_since(&self, name: &str, begun: SystemTime) {
        if let (Some(recorder), Some(context)) = (RECORDER.get(), &self.0) {
            drop(Span(Some(begin(recorder, name, Kind::Internal, context, Some(begun)))));
        }
    }

    /// Returns the position for child spans. Returns `None` if nothing is recorded.
    pub fn place(&self) -> Option<TraceParent> {
        let context = self.0.as_ref()?.span().span_context().clone();
        Some(TraceParent {
            trace: u128::from_be_bytes(context.trace_id().to_bytes()),
            span: u64::from_be_bytes(context.span_id().to_bytes()),
            flags: context.trace_flags().to_u8(),
        })
    }

    pub fn set(&self, name: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(name, value));
        }
    }

    pub fn fail(&self, why: String) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(why));
        }
    }

    /// Runs a future within the span. Steps recorded by the future become child spans.
    pub fn around<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        match &self.0 {
            Some(context) => Either::Left(work.with_context(context.clone())),
            None => Either::Right(work),
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

/// Records a step as a child span of the current [`Span::around`], if there is one.
pub async fn step<T, E: std::error::Error + 'static>(
    name: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    step_with(name, [], work).await
}

/// Records a step with attributes, as [`step`] does.
pub async fn step_with<T, E: std::error::Error + 'static, const N: usize>(
    name: &str,
    attributes: [(&'static str, &str); N],
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    // An unboxed future would be stored twice in the returned future.
    let work = Box::pin(work);
    let around = RECORDER.get().map(|recorder| (recorder, Context::current())).filter(|(_, it)| it.has_active_span());
    let Some((recorder, around)) = around else { return work.await };
    let span = Span(Some(begin(recorder, name, Kind::Internal, &around, None)));
    attributes.into_iter().for_each(|(name, value)| span.set(name, value.to_owned()));
    let done = span.around(work).await;
    if let Err(error) = &done {
        span.fail(chain(error));
    }
    done
}

fn begin(recorder: &Recorder, name: &str, kind: Kind, parent: &Context, begun: Option<SystemTime>) -> Context {
    let builder = SpanBuilder::from_name(name.to_owned()).with_kind(kind);
    let builder = match begun {
        Some(begun) => builder.with_start_time(begun),
        None => builder,
    };
    parent.with_span(tracer(recorder).build_with_context(builder, parent))
}

#[cfg(feature = "otel")]
fn tracer(recorder: &Recorder) -> opentelemetry_sdk::trace::SdkTracer {
    recorder.tracer.clone()
}

#[cfg(not(feature = "otel"))]
fn tracer(recorder: &Recorder) -> opentelemetry::trace::noop::NoopTracer {
    match *recorder {}
}

fn context_of(place: &TraceParent) -> SpanContext {
    let (trace, span) = (TraceId::from(place.trace), SpanId::from(place.span));
    // The parent span is from another process or from the database.
    SpanContext::new(trace, span, TraceFlags::new(place.flags) & TraceFlags::SAMPLED, true, TraceState::NONE)
}
