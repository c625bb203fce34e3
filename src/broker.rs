//! Requests for exports that arrive from a message broker, and their outcomes.

use bytes::Bytes;
use serde_json::Value;

use crate::job::Bounds;

/// The source of requests for exports, and the requests that it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intake {
    /// The name of the block in the operator's file.
    pub name: String,
    /// The name of the queue.
    pub queue: String,
    /// The exchange to which the service publishes a refused request, with the reason.
    pub dead_letter_exchange: String,
    /// The consumers and datasets that a request may name.
    pub bounds: Bounds,
}

/// A message with a request for an export.
#[derive(Clone, Debug)]
pub struct Message {
    /// The message id, which is the same at each delivery. `None` if the message has none.
    pub id: Option<String>,
    /// The values of the consumer headers. More than one is a mistake of the sender.
    pub consumers: Vec<Vec<u8>>,
    /// The value of the `traceparent` header.
    pub traceparent: Option<Vec<u8>>,
    /// The content type. `None` if the message has none.
    pub content_type: Option<String>,
    /// The body, in the form of `POST /exports`.
    pub body: Bytes,
}

/// The outcome of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The job for the request is committed.
    Accepted,
    /// The request is invalid. Contains the problem that the API would return.
    Refused(Value),
    /// The request may succeed soon. Contains the problem that the API would return.
    Deferred(Value),
    /// The service failed, or can't use the dataset's table, possibly for a long time. Contains the problem that the
    /// API would return.
    Failed(Value),
}
