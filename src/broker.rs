//! Requests for exports that a message broker brings, and their outcomes.

use bytes::Bytes;
use serde_json::Value;

use crate::job::ConsumerId;

/// Where requests for exports come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intake {
    /// The queue.
    pub queue: String,
    /// The exchange to which a refused request is published, with the reason.
    pub dead_letter_exchange: String,
    /// The datasets that a request may name. `None`: all.
    pub datasets: Option<Vec<String>>,
    /// The consumers that a request may name. `None`: all, and no consumer.
    pub consumers: Option<Vec<ConsumerId>>,
}

/// A request for an export, as a message brought it.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its id, the same at each delivery. `None`: it has none.
    pub id: Option<String>,
    /// The values of its consumer headers. More than one is a mistake of the sender.
    pub consumers: Vec<Vec<u8>>,
    /// Its `traceparent` header.
    pub traceparent: Option<Vec<u8>>,
    /// Its content type. `None`: it has none.
    pub content_type: Option<String>,
    /// Its body, as of `POST /exports`.
    pub body: Bytes,
}

/// The outcome of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A job for it is committed.
    Accepted,
    /// The request itself is wrong: the problem that the API would answer.
    Refused(Value),
    /// The request may succeed soon: the problem that the API would answer.
    Deferred(Value),
    /// The service failed or can't use the dataset's table, perhaps for long: the problem that the API would answer.
    Failed(Value),
}
