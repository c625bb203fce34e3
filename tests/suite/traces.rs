//! The spans that a collector of traces receives, and the cost of a collector that is away.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode as SpanStatus};
use prost::Message;
use serde_json::{Value, json};

use crate::catalog::{Catalog, ended};
use crate::harness::{Database, HANG_TIMEOUT, Service, Start, ends, eventually, serving_users};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3";

/// A collector of our own, which keeps what it is posted; and a receiver of events.
#[derive(Clone, Default)]
struct Collector {
    port: u16,
    /// The status of the answers to all posts.
    status: Option<StatusCode>,
    spans: Arc<Mutex<Vec<Span>>>,
    resource: Arc<Mutex<Vec<KeyValue>>>,
    posts: Arc<Mutex<Vec<(Uri, HeaderMap)>>>,
}

impl Collector {
    async fn start() -> Collector {
        Collector::answering(None).await
    }

    async fn answering(status: Option<StatusCode>) -> Collector {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Collector { port: listener.local_addr().unwrap().port(), status, ..Collector::default() };
        let routes = Router::new().fallback(take).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        collector
    }

    fn recorded_by(&self, start: Start) -> Start {
        // The second is the recorder's own variable, so that a test need not wait for it.
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        start.with("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).with("OTEL_BSP_SCHEDULE_DELAY", 100)
    }

    /// The spans of a trace, once these are among them, each so often.
    async fn has(&self, trace: &str, wanted: &[&str]) -> Vec<Span> {
        let of_trace = || {
            let spans = self.spans.lock().unwrap();
            spans.iter().filter(|span| hex::encode(&span.trace_id) == trace).cloned().collect::<Vec<_>>()
        };
        let is_in = |spans: &[Span]| {
            let often = |name: &str| wanted.iter().filter(|it| **it == name).count();
            wanted.iter().all(|name| spans.iter().filter(|span| span.name == *name).count() >= often(name))
        };
        eventually("the spans", || async { Some(of_trace()).filter(|spans| is_in(spans)) }).await
    }

    fn headers(&self, path: &str) -> Vec<HeaderMap> {
        let posts = self.posts.lock().unwrap();
        posts.iter().filter(|(uri, _)| uri.path() == path).map(|(_, headers)| headers.clone()).collect()
    }
}

async fn take(State(collector): State<Collector>, uri: Uri, headers: HeaderMap, body: Bytes) -> StatusCode {
    if uri.path() == "/v1/traces" && headers["content-type"] == "application/x-protobuf" {
        for of_resource in ExportTraceServiceRequest::decode(body).unwrap().resource_spans {
            *collector.resource.lock().unwrap() = of_resource.resource.unwrap().attributes;
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            collector.spans.lock().unwrap().extend(spans);
        }
    }
    collector.posts.lock().unwrap().push((uri, headers));
    collector.status.unwrap_or(StatusCode::OK)
}

/// Returns an attribute of a span, or of the process, as a text or a number.
fn said(attributes: &[KeyValue], name: &str) -> Option<Value> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.clone() {
        Some(AnyValue { value: Some(Any::StringValue(text)) }) => Some(json!(text)),
        Some(AnyValue { value: Some(Any::IntValue(number)) }) => Some(json!(number)),
        other => panic!("{other:?}"),
    }
}

/// Each publication has this parent. There may be two: maintenance publishes what it finds before the worker is done.
fn assert_published_below(spans: &[Span], parent: &Span) {
    let mut published = spans.iter().filter(|span| span.name == "publish").peekable();
    assert!(published.peek().is_some(), "{spans:#?}");
    assert!(published.all(|span| span.parent_span_id == parent.span_id), "{spans:#?}");
}

/// The only span of this name.
fn only<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name}: {spans:#?}");
    found[0]
}

fn traceparent() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

async fn submit(service: &Service, path: &str, traceparent: &str) -> String {
    let headers = [("X-Consumer-ID", "c"), ("traceparent", traceparent)];
    let answer = service.call("POST", path, &headers).await;
    assert_eq!(answer.status(), 202);
    answer.json::<Value>().await.unwrap()["jobId"].as_str().unwrap().to_owned()
}

/// The trace that the database has of a job.
async fn kept(database: &Database, job: &str) -> Option<String> {
    database.one(&format!("select traceparent from cdc_export.jobs where id = '{job}'")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_goes_on_from_the_request_to_the_receiver() {
    let database = Database::with_users(50).await;
    let collector = Collector::start().await;
    let catalog = Catalog::of(&format!(
        "[[dataset]]\nname = \"users\"\ntable = \"users\"\nupdated_at = \"updated_at\"\n\n[[webhook]]\nname = \"told\"\n\
         url = \"http://localhost:{}/told\"\nsecret_env = \"TOLD_SECRET\"\nallow_http = true\nallow_private = true\n",
        collector.port
    ));
    catalog.track(&database, "users").await;
    let start = collector.recorded_by(catalog.start(&database)).with("TOLD_SECRET", SECRET);
    let start = start.with("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b").with("OTEL_SERVICE_NAME", "shop-exports");
    let service = start.with("OTEL_RESOURCE_ATTRIBUTES", "team=data").service().await;
    let job = submit(&service, "/exports/full", &traceparent()).await;
    service.becomes(&job, "completed").await;

    let names = ["POST /exports/full", "attempt", "claim", "open", "stream", "commit", "publish", "deliver"];
    let spans = collector.has(TRACE, &names).await;
    let call = only(&spans, "POST /exports/full");
    assert_eq!((hex::encode(&call.parent_span_id), call.kind()), (CALLER.to_owned(), SpanKind::Server));
    assert_eq!(said(&call.attributes, "http.response.status_code"), Some(json!(202)));
    for name in ["attempt", "deliver"] {
        assert_eq!(only(&spans, name).parent_span_id, call.span_id, "{name}");
    }
    assert_published_below(&spans, call);
    let attempt = only(&spans, "attempt");
    for name in ["claim", "open", "stream", "commit"] {
        let step = only(&spans, name);
        assert_eq!(step.parent_span_id, attempt.span_id, "{name}");
        let is_within = attempt.start_time_unix_nano <= step.start_time_unix_nano
            && step.start_time_unix_nano <= step.end_time_unix_nano
            && step.end_time_unix_nano <= attempt.end_time_unix_nano;
        assert!(is_within, "{name}");
    }
    for (name, value) in
        [("job.id", json!(job)), ("dataset", json!("users")), ("consumer", json!("c")), ("attempt", json!(1))]
    {
        assert_eq!(said(&attempt.attributes, &format!("cdc_export.{name}")), Some(value));
    }
    assert!(spans.iter().all(|span| span.status.as_ref().is_none_or(|status| status.code() == SpanStatus::Unset)));

    let resource = collector.resource.lock().unwrap().clone();
    assert_eq!(said(&resource, "service.name"), Some(json!("shop-exports")));
    assert_eq!(said(&resource, "team"), Some(json!("data")));
    assert!(collector.headers("/v1/traces").iter().all(|headers| headers["x-key"] == "a b"));
    // The receiver may go on from the delivery.
    let deliver = hex::encode(&only(&spans, "deliver").span_id);
    assert_eq!(collector.headers("/told")[0]["traceparent"], format!("00-{TRACE}-{deliver}-01"));
    assert_eq!(kept(&database, &job).await, Some(format!("00-{TRACE}-{}-01", hex::encode(&call.span_id))));
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_at_a_job_that_nobody_traced_are_one_trace() {
    let database = Database::with_users(5).await;
    let collector = Collector::start().await;
    let users = "[[dataset]]\nname = \"users\"\ntable = \"users\"\nupdated_at = \"updated_at\"\n";
    let schedule =
        "[[schedule]]\nname = \"s\"\ndataset = \"users\"\nconsumer = \"s\"\ntype = \"full\"\nevery = \"1h\"\n";
    let catalog = Catalog::of(&format!("{users}{schedule}"));
    catalog.track(&database, "users").await;
    // A file that can't be made fails the first attempt.
    let start = collector.recorded_by(catalog.start(&database)).with("FAILPOINTS", "sink.create=error");
    let service = start.service().await;
    let id = eventually("the schedule's job", || async {
        database.one::<Option<String>>("select min(id::text) from cdc_export.jobs where status = 'completed'").await
    })
    .await;
    let kept = kept(&database, &id).await.unwrap();
    let spans = collector.has(&kept[3..35], &["attempt", "attempt", "publish"]).await;
    let mut attempts: Vec<_> = spans.iter().filter(|span| span.name == "attempt").collect();
    attempts.sort_by_key(|span| span.start_time_unix_nano);
    assert_eq!((attempts.len(), attempts[0].parent_span_id.len()), (2, 0), "{spans:#?}");
    assert_eq!(attempts[1].parent_span_id, attempts[0].span_id);
    let status = attempts[0].status.clone().unwrap();
    assert_eq!(status.code(), SpanStatus::Error);
    assert_eq!(attempts[1].status.clone().unwrap_or_default().code(), SpanStatus::Unset);
    assert!(!status.message.is_empty());
    assert_published_below(&spans, attempts[0]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_several_datasets_is_one_attempt_with_a_step_for_each_export() {
    let tables = ["alpha", "beta", "gamma"];
    let database =
        Database::new_with(&tables.map(|name| format!("create table {name} (k int primary key);")).concat()).await;
    let catalog = Catalog::of_tables(&tables);
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    let collector = Collector::start().await;
    let service = collector.recorded_by(catalog.start(&database)).service().await;
    let body = json!({ "datasets": "*" });
    let headers = [("X-Consumer-ID", "a"), ("traceparent", &*traceparent())];
    assert_eq!(service.post("/exports/delta", &headers, &body).await.status(), 202);
    let spans = collector.has(TRACE, &["attempt", "stream", "stream", "stream", "publish", "publish", "publish"]).await;
    let (call, attempt) = (only(&spans, "POST /exports/delta"), only(&spans, "attempt"));
    assert_eq!(attempt.parent_span_id, call.span_id);
    assert_eq!(said(&attempt.attributes, "cdc_export.datasets"), Some(json!(3)));
    let exports: Vec<_> = spans.iter().filter(|span| span.name == "stream").collect();
    assert!(exports.iter().all(|span| span.parent_span_id == attempt.span_id), "{spans:#?}");
    let mut datasets: Vec<_> =
        exports.iter().map(|span| said(&span.attributes, "cdc_export.dataset").unwrap()).collect();
    datasets.sort_by_key(Value::to_string);
    assert_eq!(datasets, tables);
    assert_published_below(&spans, call);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_the_callers_place_is_handed_on() {
    let (database, service) = serving_users(5).await;
    let job = submit(&service, "/exports/full", &traceparent()).await;
    service.becomes(&job, "completed").await;
    assert_eq!(kept(&database, &job).await, Some(traceparent()));
    for odd in ["00-0-0-01", "nonsense", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"] {
        let job = submit(&service, "/exports/incremental", odd).await;
        service.becomes(&job, "completed").await;
        assert_eq!(kept(&database, &job).await, None, "{odd}");
    }
    let none = ended(&service, "/exports/full", Some("d"), json!({})).await;
    assert_eq!(kept(&database, none["jobId"].as_str().unwrap()).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_records_nothing_is_obeyed() {
    let database = Database::new().await;
    let collector = Collector::start().await;
    let service = collector.recorded_by(Start::on(&database)).service().await;
    let unrecorded = "00-11111111111111111111111111111111-00f067aa0ba902b7-00";
    let job = submit(&service, "/exports/full", unrecorded).await;
    service.becomes(&job, "completed").await;
    let kept = kept(&database, &job).await.unwrap();
    assert!(kept.starts_with(&unrecorded[..36]) && kept.ends_with("-00"), "{kept}");
    // One behind it is recorded, and probes are not.
    service.call("GET", "/health/ready", &[("traceparent", &traceparent())]).await;
    let job = submit(&service, "/exports/full", &traceparent()).await;
    service.becomes(&job, "completed").await;
    collector.has(TRACE, &["POST /exports/full", "publish"]).await;
    let spans = collector.spans.lock().unwrap();
    assert!(spans.iter().all(|span| hex::encode(&span.trace_id) != unrecorded[3..35]));
    assert!(spans.iter().all(|span| !span.name.contains("health")));
}

/// Exports go on if the collector refuses, hangs or isn't there. The process ends in time, and the log says once what
/// is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_takes_nothing_holds_nothing_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hangs = Collector { port: silent.local_addr().unwrap().port(), ..Collector::default() };
    let refuses = Collector::answering(Some(StatusCode::SERVICE_UNAVAILABLE)).await;
    let absent = Collector { port: 1, ..Collector::default() };
    for (collector, is_told) in [(refuses, true), (absent, true), (hangs, false)] {
        let database = Database::new().await;
        // The end doesn't wait as long as a post may take.
        let start =
            Start::on(&database).with("FAILPOINTS", format!("spans.post=time:{}", 2 * HANG_TIMEOUT.as_millis()));
        let mut service = collector.recorded_by(start).service().await;
        for _ in 0..3 {
            let job = submit(&service, "/exports/full", &traceparent()).await;
            service.becomes(&job, "completed").await;
        }
        if is_told {
            let told = || async { Some(service.events("traces_failed")).filter(|told| !told.is_empty()) };
            assert_eq!(eventually("the log", told).await[0]["times"], 1);
        }
        service.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(service.exit().await, Some(0));
        // One that hangs has not even refused what it was sent.
        assert!(is_told || !service.events("traces_failed").is_empty(), "{}", service.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_last_is_sent_at_the_end() {
    let database = Database::new().await;
    let collector = Collector::start().await;
    let start = collector.recorded_by(Start::on(&database)).with("OTEL_BSP_SCHEDULE_DELAY", 600_000);
    let service = start.service().await;
    let job = submit(&service, "/exports/full", &traceparent()).await;
    service.becomes(&job, "completed").await;
    service.stop().await;
    collector.has(TRACE, &["POST /exports/full", "attempt", "publish"]).await;
}
