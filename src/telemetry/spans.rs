//! Spans: what was done for a request or an export, from when to when, as a collector that speaks OTLP gets them.
//!
//! Where no collector is named, nothing is recorded and nothing is allocated.

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

use crate::telemetry::chain;
use crate::trace::TraceParent;

pub use opentelemetry::trace::SpanKind as Kind;
pub use settings::{Sampler, Settings};

/// What records spans, once it is started.
static RECORDER: OnceLock<Recorder> = OnceLock::new();

#[cfg(feature = "otel")]
type Recorder = exporter::Recorder;
/// Without the feature there is none.
#[cfg(not(feature = "otel"))]
type Recorder = std::convert::Infallible;

/// Begins to record spans for the collector of these settings. Called once in a process.
///
/// # Errors
/// With the reason why these settings can't be met.
#[cfg(feature = "otel")]
pub fn start(settings: &Settings) -> Result<(), String> {
    let recorder = exporter::recorder(settings)?;
    RECORDER.set(recorder).map_err(|_| "it was started before".to_owned())
}

/// Sends what is recorded, and records no more. Blocks for as long as a collector may take at an end that others wait
/// for.
pub fn end() {
    #[cfg(feature = "otel")]
    if let Some(recorder) = RECORDER.get() {
        recorder.end();
    }
}

/// A span that lasts until it is dropped. `None`: nothing is recorded.
#[derive(Debug)]
pub struct Span(Option<Context>);

impl Span {
    /// Begins a span below `parent`; without a parent, a trace.
    pub fn start(name: &str, kind: Kind, parent: Option<&TraceParent>) -> Span {
        Span::start_at(name, kind, parent, None)
    }

    /// Begins a span in the past.
    pub fn start_at(name: &str, kind: Kind, parent: Option<&TraceParent>, begun: Option<SystemTime>) -> Span {
        Span(RECORDER.get().map(|recorder| {
            let parent =
                parent.map_or_else(Context::new, |place| Context::new().with_remote_span_context(context_of(place)));
            begin(recorder, name, kind, &parent, begun)
        }))
    }

    /// A step of this span that is over: it began at this time and ends now.
    pub fn step_since(&self, name: &str, begun: SystemTime) {
        if let (Some(recorder), Some(context)) = (RECORDER.get(), &self.0) {
            drop(Span(Some(begin(recorder, name, Kind::Internal, context, Some(begun)))));
        }
    }

    /// Where spans belong that are to be children of this one; `None`: nothing is recorded.
    pub fn place(&self) -> Option<TraceParent> {
        let context = self.0.as_ref()?.span().span_context().clone();
        Some(TraceParent {
            trace: u128::from_be_bytes(context.trace_id().to_bytes()),
            span: u64::from_be_bytes(context.span_id().to_bytes()),
            flags: context.trace_flags().to_u8(),
        })
    }

    /// Says more of it.
    pub fn set(&self, name: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(name, value));
        }
    }

    /// Says that it failed, and why.
    pub fn fail(&self, why: String) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(why));
        }
    }

    /// Does something within it: the steps there are its children.
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

/// Does a step of what is under way here, if that is recorded: what [`Span::around`] does.
///
/// # Errors
/// Those of the step.
pub async fn step<T, E: std::error::Error + 'static>(
    name: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    // A future that holds another one has twice its size.
    let work = Box::pin(work);
    let around = RECORDER.get().map(|recorder| (recorder, Context::current())).filter(|(_, it)| it.has_active_span());
    let Some((recorder, around)) = around else { return work.await };
    let span = Span(Some(begin(recorder, name, Kind::Internal, &around, None)));
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
    // It comes from another process, or from the database.
    SpanContext::new(trace, span, TraceFlags::new(place.flags) & TraceFlags::SAMPLED, true, TraceState::NONE)
}
