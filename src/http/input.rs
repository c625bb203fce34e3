//! What requests carry, read and checked: the consumer, a job's id, an optional JSON body.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use chrono::{DateTime, Datelike, Utc};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{Ref, Required};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::http::REQUEST_TIMEOUT;
use crate::http::access::Caller;
use crate::http::json::{self, Fault};
use crate::http::problem::{Code, Problem};
use crate::job::selection::{Condition, Operator};
use crate::job::{After, ConsumerId, IdempotencyKey, JobId};
use crate::service::{self, Service};

const CONSUMER_HEADER: &str = "X-Consumer-ID";
const KEY_HEADER: &str = "Idempotency-Key";
const MAX_BODY_BYTES: usize = 1_000_000;
/// Columns that a table may have.
const MOST_NAMES: usize = 1_600;
const MOST_CONDITIONS: usize = 100;

/// The consumer that the header names, if there is one; one that the caller is allowed.
pub(crate) struct MaybeConsumer(pub(crate) Option<ConsumerId>);

impl<S: Sync> FromRequestParts<S> for MaybeConsumer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<MaybeConsumer, Problem> {
        let consumer = header_of(&parts.headers, CONSUMER_HEADER, Code::ConsumerInvalid)?;
        Caller::from_request_parts(parts, state).await?.require(consumer.as_ref())?;
        Ok(MaybeConsumer(consumer))
    }
}

/// The consumer that the header names; one that the caller is allowed.
pub(crate) struct Consumer(pub(crate) ConsumerId);

impl<S: Sync> FromRequestParts<S> for Consumer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Consumer, Problem> {
        let consumer = header_of(&parts.headers, CONSUMER_HEADER, Code::ConsumerInvalid)?.ok_or_else(|| {
            Problem::bad_input(Code::ConsumerRequired, CONSUMER_HEADER, "X-Consumer-ID: the header is missing")
        })?;
        Caller::from_request_parts(parts, state).await?.require(Some(&consumer))?;
        Ok(Consumer(consumer))
    }
}

/// The client's name for its request, if it has one.
pub(crate) struct Key(pub(crate) Option<IdempotencyKey>);

impl<S: Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Key, Problem> {
        header_of(&parts.headers, KEY_HEADER, Code::IdempotencyKeyInvalid).map(Key)
    }
}

impl IntoParams for Consumer {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![consumer_parameter(CONSUMER_HEADER, ParameterIn::Header).required(Required::True).build()]
    }
}

impl IntoParams for MaybeConsumer {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![consumer_parameter(CONSUMER_HEADER, ParameterIn::Header).required(Required::False).build()]
    }
}

impl IntoParams for PathConsumer {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![consumer_parameter("consumer_id", ParameterIn::Path).required(Required::True).build()]
    }
}

fn consumer_parameter(name: &str, place: ParameterIn) -> ParameterBuilder {
    let schema = Ref::from_schema_name(ConsumerId::name());
    let parameter = ParameterBuilder::new().name(name).parameter_in(place).schema(Some(schema));
    parameter.description(Some("Whose export it is")).example(Some("search".into()))
}

impl IntoParams for PathJob {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema =
            ObjectBuilder::new().schema_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)));
        let parameter = ParameterBuilder::new().name("jobId").parameter_in(ParameterIn::Path).required(Required::True);
        let parameter = parameter.description(Some("The id that the call gave which asked for the export"));
        vec![parameter.schema(Some(schema)).example(Some("01a1f83b-3f18-718b-bb88-fdeaa3d54f3e".into())).build()]
    }
}

impl<C: IntoParams> IntoParams for Submission<C> {
    fn into_params(place: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[!-~]{1,255}$"));
        let key = ParameterBuilder::new().name(KEY_HEADER).parameter_in(ParameterIn::Header).required(Required::False);
        let key = key.schema(Some(schema)).example(Some("order-7".into())).description(Some(
            "A name for this request. Sent again, it gets the first answer and makes no second job, for as long as the job is kept",
        ));
        C::into_params(place).into_iter().chain([key.build()]).collect()
    }
}

/// A header's value, if it has one; two that might contradict each other are none.
fn header_of<T>(headers: &HeaderMap, name: &str, code: Code) -> Result<Option<T>, Problem>
where
    T: FromStr<Err: Display>,
{
    let bad = |why: &dyn Display| Problem::bad_input(code, name, format!("{name}: {why}"));
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().unwrap_or_default().parse().map(Some).map_err(|why| bad(&why)),
        (Some(_), Some(_)) => Err(bad(&"given twice")),
    }
}

/// Whether the client says, by `If-None-Match`, that it has what this `ETag` stands for; a weak tag does as well (RFC 9110, 13.1.2).
pub(crate) fn has_already(headers: &HeaderMap, etag: &[u8]) -> bool {
    let tags = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
    let mut tags = tags.flat_map(|tags| tags.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
    tags.any(|tag| tag == "*" || tag.as_bytes() == etag)
}

/// The consumer that the path names; one that the caller is allowed.
pub(crate) struct PathConsumer(pub(crate) ConsumerId);

impl<S: Send + Sync> FromRequestParts<S> for PathConsumer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<PathConsumer, Problem> {
        // What can't be decoded is no consumer id either.
        let text = PathParameter::from_request_parts(parts, state).await.map(|PathParameter(text)| text);
        let consumer = text.unwrap_or_default().parse();
        let consumer = consumer
            .map_err(|why| Problem::bad_input(Code::ConsumerInvalid, "consumer_id", format!("consumer_id: {why}")))?;
        Caller::from_request_parts(parts, state).await?.require(Some(&consumer))?;
        Ok(PathConsumer(consumer))
    }
}

impl From<Consumer> for ConsumerId {
    fn from(Consumer(consumer): Consumer) -> ConsumerId {
        consumer
    }
}

impl From<PathConsumer> for ConsumerId {
    fn from(PathConsumer(consumer): PathConsumer) -> ConsumerId {
        consumer
    }
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

/// The job that the path names. A malformed id is the id of no job, and so is that of one which the caller may not see: nobody
/// learns whether somebody else's exists.
pub(crate) struct PathJob(pub(crate) JobId);

impl FromRequestParts<Service> for PathJob {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, service: &Service) -> Result<PathJob, Problem> {
        let PathParameter(id) = PathParameter::from_request_parts(parts, service).await?;
        let id = Uuid::try_parse(&id).map_err(|_| service::Error::NoJob)?.into();
        let caller = Caller::from_request_parts(parts, service).await?;
        // A job's consumer never changes.
        if caller.consumers().is_some() && !caller.sees(&service.job(id).await?) {
            return Err(service::Error::NoJob.into());
        }
        Ok(PathJob(id))
    }
}

/// What a call that makes an export carries: what it is to be of, as `C` reads it, the client's name for the request, and a body.
pub(crate) struct Submission<C> {
    pub(crate) of: C,
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) members: Members,
}

impl<S: Send + Sync, C: FromRequestParts<S, Rejection = Problem> + Send> FromRequest<S> for Submission<C> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Submission<C>, Problem> {
        let (mut parts, body) = request.into_parts();
        let of = C::from_request_parts(&mut parts, state).await?;
        let Key(key) = Key::from_request_parts(&mut parts, state).await?;
        let members = Members::from_request(Request::from_parts(parts, body), state).await?;
        Ok(Submission { of, key, members })
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
        match json::read(&bytes) {
            Ok(Value::Object(members)) => Ok(Members(members)),
            Ok(_) => Err(Problem::bad_body("body: a JSON object is expected")),
            Err(Fault::Twice(member)) => Err(invalid(&member, "given twice")),
            Err(Fault::Reserved(member)) => Err(unknown(&member)),
            Err(why @ Fault::NotJson(_)) => Err(Problem::bad_body(format!("body: {why}"))),
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

/// A value as a text, which its column's type reads.
fn scalar(value: &Value) -> Option<String> {
    match value {
        // Postgres's texts have no NUL.
        Value::String(text) if !text.contains('\0') => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(boolean) => Some(boolean.to_string()),
        _ => None,
    }
}

fn invalid(name: &str, why: impl Display) -> Problem {
    Problem::bad_input(Code::MemberInvalid, name, format!("{name}: {why}"))
}

fn unknown(name: &str) -> Problem {
    Problem::bad_input(Code::MemberUnknown, name, format!("{name}: there is no such member"))
}

impl Members {
    /// Takes a member that is a text.
    pub(crate) fn take_text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(name, "a string is expected")),
        }
    }

    /// Takes `after` and `afterSha256`: what the caller loaded last, if it says that.
    pub(crate) fn take_after(&mut self) -> Result<Option<After>, Problem> {
        let after = match self.0.remove("after") {
            None => None,
            Some(Value::Null) => Some(After::Nothing),
            Some(Value::String(text)) => {
                let job =
                    text.parse::<Uuid>().map_err(|_| invalid("after", "the id of an export, or null, is expected"))?;
                Some(After::Export { job: job.into(), sha256: None })
            }
            Some(_) => return Err(invalid("after", "the id of an export, or null, is expected")),
        };
        match (after, self.take_text("afterSha256")?) {
            (after, None) => Ok(after),
            (Some(After::Export { job, .. }), Some(text)) if After::is_sha256(&text) => {
                Ok(Some(After::Export { job, sha256: Some(text) }))
            }
            (Some(After::Export { .. }), Some(_)) => {
                Err(invalid("afterSha256", "64 hexadecimal digits in lower case are expected"))
            }
            (_, Some(_)) => Err(invalid("afterSha256", "it goes with the id of an export in `after`")),
        }
    }

    /// Takes a member that is one of a type's words.
    pub(crate) fn take_word<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        let word = self.take_text(name)?;
        word.map(|word| word.parse().map_err(|why| invalid(name, why))).transpose()
    }

    /// Takes a member that is a whole number of this range.
    pub(crate) fn take_number(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Problem> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        let number = value.as_u64().filter(|number| range.contains(number));
        number.map(Some).ok_or_else(|| {
            invalid(name, format!("a whole number from {} to {} is expected", range.start(), range.end()))
        })
    }

    /// Takes a member that is a list of names, each once.
    pub(crate) fn take_names(&mut self, name: &str) -> Result<Option<Vec<String>>, Problem> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        let expected = || invalid(name, format!("a list of 1 to {MOST_NAMES} strings is expected"));
        let Value::Array(items) = value else { return Err(expected()) };
        let text = |item| match item {
            Value::String(text) => Some(text),
            _ => None,
        };
        let names: Option<Vec<String>> = items.into_iter().map(text).collect();
        let names = names.filter(|names| (1..=MOST_NAMES).contains(&names.len()));
        let names = names.ok_or_else(expected)?;
        match names.iter().enumerate().find(|(i, one)| names[..*i].contains(one)) {
            Some((i, one)) => Err(invalid(&format!("{name}[{i}]"), format!("`{one}` is there already"))),
            None => Ok(Some(names)),
        }
    }

    /// Takes a member that is a list of conditions, objects of `column`, `op` and `value`.
    pub(crate) fn take_conditions(&mut self, name: &str) -> Result<Vec<Condition>, Problem> {
        let conditions = match self.0.remove(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(conditions)) if conditions.len() <= MOST_CONDITIONS => conditions,
            Some(_) => return Err(invalid(name, format!("a list of up to {MOST_CONDITIONS} objects is expected"))),
        };
        let read = |(i, condition)| match condition {
            Value::Object(members) => Members(members).into_condition(&format!("{name}[{i}]")),
            _ => Err(invalid(&format!("{name}[{i}]"), "an object of column, op and value is expected")),
        };
        conditions.into_iter().enumerate().map(read).collect()
    }

    fn into_condition(mut self, at: &str) -> Result<Condition, Problem> {
        let member = |name: &str| format!("{at}.{name}");
        let mut text = |name: &str| match self.0.remove(name) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(invalid(&member(name), "a string is expected")),
        };
        let column = text("column")?;
        let operator: Operator = text("op")?.parse().map_err(|why| invalid(&member("op"), why))?;
        let value = self.0.remove("value").unwrap_or(Value::Null);
        let value = match (operator, &value) {
            (Operator::In, Value::Array(values)) => {
                let texts: Option<Vec<String>> = values.iter().map(scalar).collect();
                texts.map(|texts| serde_json::json!(texts).to_string())
            }
            (Operator::In, _) => None,
            (Operator::IsNull, Value::Bool(_)) => scalar(&value),
            (Operator::IsNull, _) => None,
            _ => scalar(&value),
        };
        let expected = match operator {
            Operator::In => "a list of strings, numbers or booleans is expected",
            Operator::IsNull => "true or false is expected",
            _ => "a string, a number or a boolean is expected; for NULL there is isNull",
        };
        let value = value.ok_or_else(|| invalid(&member("value"), expected))?;
        match self.0.into_iter().next() {
            None => Ok(Condition { column, operator, value }),
            Some((name, _)) => Err(unknown(&member(&name))),
        }
    }

    /// Takes a member that is a time, RFC 3339.
    pub(crate) fn take_time(&mut self, name: &str) -> Result<DateTime<Utc>, Problem> {
        let time = match self.0.remove(name) {
            Some(Value::String(time)) => DateTime::parse_from_rfc3339(&time).ok(),
            _ => None,
        };
        // Postgres has no year 0 and no leap second, which this type has; RFC 3339 has no year of five digits.
        let has_form =
            |time: &DateTime<Utc>| (1..=9999).contains(&time.year()) && time.timestamp_subsec_nanos() < 1_000_000_000;
        let time = time.map(DateTime::<Utc>::from).filter(has_form);
        time.ok_or_else(|| invalid(name, "an RFC 3339 time is expected"))
    }

    /// Refuses every member that nobody has taken.
    pub(crate) fn refuse_others(self) -> Result<(), Problem> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => Err(unknown(&name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_in_any_line_of_the_header() {
        let has = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::IF_NONE_MATCH, line.parse().unwrap());
            }
            has_already(&headers, b"\"a\"")
        };
        for lines in [&["\"a\""][..], &["*"], &["W/\"a\""], &["\"b\", \"a\""], &["\"b\"", "\"a\""]] {
            assert!(has(lines), "{lines:?}");
        }
        for lines in [&[][..], &["a"], &["\"b\""], &["\"ab\"", "\"b\""]] {
            assert!(!has(lines), "{lines:?}");
        }
    }
}
