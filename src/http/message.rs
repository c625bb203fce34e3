//! Requests for exports from a message queue. The service parses, refuses and accepts them like calls of `POST
//! /exports`.

use std::panic::AssertUnwindSafe;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use futures_util::FutureExt;
use serde_json::json;

use crate::audit::Origin;
use crate::broker::{Intake, Message, Outcome};
use crate::http::code::Code;
use crate::http::exports::submission::{Asked, NewExport, Submission};
use crate::http::exports::submit::{submit, submit_batch};
use crate::http::input::{CONSUMER_HEADER, KEY_HEADER, MaybeConsumer};
use crate::http::problem::{self, Problem};
use crate::http::traces;
use crate::service::Service;

/// Submits the export requested by a message. The id of the message is the idempotency key.
pub async fn take_message(service: &Service, intake: &Intake, message: Message) -> Outcome {
    let taken = AssertUnwindSafe(take(service, intake, message)).catch_unwind().await;
    match taken.unwrap_or_else(|panic| Err(problem::from_panic(panic.as_ref()))) {
        Ok(()) => Outcome::Accepted,
        // This error concerns one dataset, and other requests can succeed. A deferred message would wait until an
        // operator changes the file or the table.
        Err(problem) if problem.is(Code::DatasetMismatch) => Outcome::Failed(json!(problem)),
        // This error has the same scope, unless the database has become unavailable in the meantime.
        Err(problem) if problem.is(Code::TableUnreadable) && service.ping().await.is_ok() => {
            Outcome::Failed(json!(problem))
        }
        // These errors are temporary and do not depend on the message.
        Err(problem) if matches!(problem.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) => {
            Outcome::Deferred(json!(problem))
        }
        Err(problem) if problem.status().is_server_error() => Outcome::Failed(json!(problem)),
        Err(problem) => Outcome::Refused(json!(problem)),
    }
}

async fn take(service: &Service, intake: &Intake, message: Message) -> Result<(), Problem> {
    let Message { id, consumers, traceparent, content_type, body } = message;
    let Some(id) = id else {
        let detail = "the message has no id: without one, a redelivery would create another export";
        return Err(Problem::bad_input(Code::IdempotencyKeyInvalid, "message-id", detail));
    };
    let mut request = Request::new(Body::from(body));
    let headers = request.headers_mut();
    let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).unwrap_or(HeaderValue::from_static(""));
    headers.insert(KEY_HEADER, value(id.as_bytes()));
    for consumer in consumers {
        headers.append(CONSUMER_HEADER, value(&consumer));
    }
    if let Some(place) = traceparent {
        headers.insert(traces::HEADER, value(&place));
    }
    // Most publishers do not set the content type.
    let content_type = content_type.unwrap_or_else(|| "application/json".to_owned());
    headers.insert(header::CONTENT_TYPE, value(content_type.as_bytes()));
    // The broker controls who may publish. The datasets file limits the consumers and datasets of the queue.
    let service = service.for_request(&intake.bounds, None, Origin::amqp(&intake.name));
    request.extensions_mut().insert(service.clone());
    let submission = Submission::<MaybeConsumer, NewExport>::from_request(request, &()).await?;
    match submission.asked(&service)? {
        Asked::Export(request) => submit(&service, &request).await.map(drop),
        Asked::Batch(order) => submit_batch(&service, &order).await.map(drop),
    }
}
