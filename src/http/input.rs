//! What requests carry, read and checked: the consumer, a job's id, an optional JSON body.

use std::str::FromStr;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use chrono::{DateTime, Datelike, Utc};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::http::REQUEST_TIMEOUT;
use crate::http::problem::Problem;
use crate::job::{BadIdempotencyKey, ConsumerId, IdempotencyKey, JobId};

const CONSUMER_HEADER: &str = "X-Consumer-ID";
const KEY_HEADER: &str = "Idempotency-Key";
const MAX_BODY_BYTES: usize = 1_000_000;

/// The consumer that the header names, if there is one.
pub(crate) struct MaybeConsumer(pub(crate) Option<ConsumerId>);

impl<S: Sync> FromRequestParts<S> for MaybeConsumer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<MaybeConsumer, Problem> {
        let mut values = parts.headers.get_all(CONSUMER_HEADER).iter();
        let consumer = match (values.next(), values.next()) {
            (None, _) => return Ok(MaybeConsumer(None)),
            (Some(value), None) => consumer(value.to_str().unwrap_or_default(), CONSUMER_HEADER)?,
            (Some(_), Some(_)) => {
                return Err(Problem::bad_input("consumer_invalid", CONSUMER_HEADER, "X-Consumer-ID: given twice"));
            }
        };
        Ok(MaybeConsumer(Some(consumer)))
    }
}

/// The consumer that the header names.
pub(crate) struct Consumer(pub(crate) ConsumerId);

impl<S: Sync> FromRequestParts<S> for Consumer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Consumer, Problem> {
        let MaybeConsumer(consumer) = MaybeConsumer::from_request_parts(parts, state).await?;
        consumer.map(Consumer).ok_or_else(|| {
            Problem::bad_input("consumer_required", CONSUMER_HEADER, "X-Consumer-ID: the header is missing")
        })
    }
}

/// The client's name for its request, if it has one.
pub(crate) struct Key(pub(crate) Option<IdempotencyKey>);

impl<S: Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Key, Problem> {
        let bad =
            |why: String| Problem::bad_input("idempotency_key_invalid", KEY_HEADER, format!("{KEY_HEADER}: {why}"));
        let mut values = parts.headers.get_all(KEY_HEADER).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(Key(None)),
            (Some(value), None) => {
                let key = value.to_str().unwrap_or_default().parse();
                key.map(|key| Key(Some(key))).map_err(|why: BadIdempotencyKey| bad(why.to_string()))
            }
            (Some(_), Some(_)) => Err(bad("given twice".to_owned())),
        }
    }
}

/// The consumer that the path names.
pub(crate) struct PathConsumer(pub(crate) ConsumerId);

impl<S: Send + Sync> FromRequestParts<S> for PathConsumer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<PathConsumer, Problem> {
        // What can't be decoded is no consumer id either.
        let text = PathParameter::from_request_parts(parts, state).await.map(|PathParameter(text)| text);
        consumer(&text.unwrap_or_default(), "consumer_id").map(PathConsumer)
    }
}

fn consumer(text: &str, field: &str) -> Result<ConsumerId, Problem> {
    text.parse().map_err(|why| Problem::bad_input("consumer_invalid", field, format!("{field}: {why}")))
}

/// The one parameter of the path. What can't be decoded is the name of nothing.
pub(crate) struct PathParameter(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathParameter {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<PathParameter, Problem> {
        let parameters = RawPathParams::from_request_parts(parts, state).await;
        let parameters = parameters.map_err(|_| Problem::not_found("there is nothing at this path"))?;
        let first = parameters.iter().next().map(|(_, value)| value.to_owned());
        Ok(PathParameter(first.expect("the route has a parameter")))
    }
}

/// The job that the path names. A malformed id is the id of no job.
pub(crate) struct Job(pub(crate) JobId);

impl<S: Send + Sync> FromRequestParts<S> for Job {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Job, Problem> {
        let PathParameter(id) = PathParameter::from_request_parts(parts, state).await?;
        let id = Uuid::try_parse(&id).map_err(|_| Problem::not_found("there is no export with this id"))?;
        Ok(Job(id.into()))
    }
}

/// The members of an optional JSON body. An empty body is no body, whatever its `Content-Type`.
pub(crate) struct Members(Map<String, Value>);

impl<S: Sync> FromRequest<S> for Members {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Members, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read(body).await?;
        if bytes.is_empty() {
            return Ok(Members(Map::new()));
        }
        if !says_json(&parts.headers) {
            return Err(Problem::not_json());
        }
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(members)) => Ok(Members(members)),
            Ok(_) => Err(Problem::bad_body("body: a JSON object is expected")),
            Err(why) => Err(Problem::bad_body(format!("body: not JSON: {why}"))),
        }
    }
}

async fn read(body: Body) -> Result<bytes::Bytes, Problem> {
    let collected = tokio::time::timeout(REQUEST_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    match collected.map_err(|_| Problem::body_too_slow())? {
        Ok(body) => Ok(body.to_bytes()),
        Err(why) if why.is::<LengthLimitError>() => Err(Problem::body_too_large()),
        Err(_) => Err(Problem::bad_body("body: it broke off")),
    }
}

fn says_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

impl Members {
    /// Takes a member that is one of a type's words.
    pub(crate) fn take_word<T: FromStr<Err: std::fmt::Display>>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        let word = match self.0.remove(name) {
            None => return Ok(None),
            Some(Value::String(word)) => word,
            Some(_) => return Err(Problem::bad_input("member_invalid", name, format!("{name}: a string is expected"))),
        };
        let parsed =
            word.parse().map_err(|why| Problem::bad_input("member_invalid", name, format!("{name}: {why}")))?;
        Ok(Some(parsed))
    }

    /// Takes a member that is a time, RFC 3339.
    pub(crate) fn take_time(&mut self, name: &str) -> Result<DateTime<Utc>, Problem> {
        let time = match self.0.remove(name) {
            Some(Value::String(time)) => DateTime::parse_from_rfc3339(&time).ok(),
            _ => None,
        };
        // Postgres has no year 0; this type has.
        let time = time.map(DateTime::<Utc>::from).filter(|time| time.year() > 0);
        time.ok_or_else(|| Problem::bad_input("member_invalid", name, format!("{name}: an RFC 3339 time is expected")))
    }

    /// Refuses every member that nobody has taken.
    pub(crate) fn refuse_others(self) -> Result<(), Problem> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => {
                Err(Problem::bad_input("member_unknown", &name, format!("{name}: there is no such member")))
            }
        }
    }
}
