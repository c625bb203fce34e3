//! The JSON bodies of requests. The struct of a body is both what reads it and what the document of the API says of it.
//!
//! serde's derives read the members. Their errors are of a type of this module: it keeps apart what a client gets different codes for,
//! and `serde_path_to_error` says where in the body it was.

use std::fmt::Display;
use std::iter;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Expected, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

use crate::dataset::name::hint;
use crate::http::REQUEST_TIMEOUT;
use crate::http::code::Code;
use crate::http::json::{self, Fault};
use crate::http::problem::Problem;

const MAX_BODY_BYTES: usize = 1_000_000;

/// A request's optional JSON body. An empty body is no body, whatever its `Content-Type`, and says as much as `{}`.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<JsonBody<T>, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read(body).await?;
        if bytes.is_empty() {
            return from_members(Map::new()).map(JsonBody);
        }
        if !says_json(&parts.headers) {
            return Err(Problem::not_json());
        }
        match json::read(&bytes) {
            Ok(Value::Object(members)) => from_members(members).map(JsonBody),
            Ok(_) => Err(Problem::bad_body("body: a JSON object is expected")),
            Err(Fault::Twice(member)) => Err(invalid(&member, "given twice")),
            Err(Fault::Reserved(member)) => Err(unknown(&member, &[])),
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

/// The problem of a member whose value can't be.
pub(crate) fn invalid(name: &str, why: impl Display) -> Problem {
    Problem::bad_input(Code::MemberInvalid, name, format!("{name}: {why}"))
}

/// The problem of a member that the call doesn't have, but `known`. Of one that another call has, the problem says which.
pub(crate) fn unknown(name: &str, known: &[&str]) -> Problem {
    let why = match name {
        "columns" | "filter" | "limit" => {
            "only an ad-hoc export takes it, POST /exports without X-Consumer-ID: a consumer's exports hold all of the dataset, so that the \
             next one can go on from them"
        }
        "after" | "afterSha256" => {
            "only a consumer's export takes it, with X-Consumer-ID: an ad-hoc export goes on from nothing"
        }
        "exportType" => "only POST /exports takes it: of the other calls, the path says the type",
        _ => "there is no such member",
    };
    let own = name.rsplit('.').next().unwrap_or(name);
    let near = hint(own, known.iter().copied());
    Problem::bad_input(Code::MemberUnknown, name, format!("{name}: {why}{near}"))
}

/// Reads a member that a body need not have. Without this, serde would take null for a member that is left out.
pub(crate) fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

fn from_members<T: DeserializeOwned>(members: Map<String, Value>) -> Result<T, Problem> {
    serde_path_to_error::deserialize(Node(Value::Object(members))).map_err(|error| {
        let place = error.path().to_string();
        match error.into_inner() {
            Refusal::Unknown(known) => unknown(&place, known),
            Refusal::Missing(name) if place == "." => invalid(name, "the member is missing"),
            Refusal::Missing(name) => invalid(&format!("{place}.{name}"), "the member is missing"),
            Refusal::Invalid(why) => invalid(&place, why),
        }
    })
}

/// Why a member is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("there is no such member")]
    Unknown(&'static [&'static str]),
    #[error("{0}: the member is missing")]
    Missing(&'static str),
    #[error("{0}")]
    Invalid(String),
}

impl de::Error for Refusal {
    fn custom<T: Display>(why: T) -> Refusal {
        Refusal::Invalid(why.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Refusal {
        Refusal::Invalid(format!("{expected} is expected"))
    }

    fn unknown_field(_: &str, known: &'static [&'static str]) -> Refusal {
        Refusal::Unknown(known)
    }

    fn missing_field(name: &'static str) -> Refusal {
        Refusal::Missing(name)
    }
}

/// A value that a struct is read from. Otherwise than serde_json's own deserializer it fails with a [`Refusal`].
struct Node(Value);

impl<'de> Deserializer<'de> for Node {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(boolean) => visitor.visit_bool(boolean),
            // With all its digits, as serde_json passes it on.
            Value::Number(number) => {
                visitor.visit_map(MapDeserializer::new(iter::once((json::NUMBER, number.to_string()))))
            }
            Value::String(text) => visitor.visit_string(text),
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Node))),
            Value::Object(members) => {
                visitor.visit_map(MapDeserializer::new(members.into_iter().map(|(name, value)| (name, Node(value)))))
            }
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.0.as_u64() {
            Some(number) => visitor.visit_u64(number),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    /// A number has the form of an object where all its digits are wanted, and there alone.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        match self.0 {
            Value::Number(_) => Err(de::Error::invalid_type(Unexpected::Other("number"), &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

impl IntoDeserializer<'_, Refusal> for Node {
    type Deserializer = Node;

    fn into_deserializer(self) -> Node {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Members {
        #[serde(default, deserialize_with = "given")]
        number: Option<u64>,
        #[serde(default, deserialize_with = "given")]
        nullable: Option<Option<String>>,
        #[serde(default)]
        list: Vec<Item>,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, expecting = "an object of any")]
    struct Item {
        any: Value,
    }

    fn read(text: &str) -> Result<Members, Problem> {
        let Value::Object(members) = json::read(text.as_bytes()).unwrap() else { panic!("{text}") };
        from_members(members)
    }

    #[test]
    fn members_are_read_as_they_are() {
        assert_eq!(read("{}").unwrap(), Members::default());
        let members =
            read(r#"{"number":18446744073709551615,"nullable":null,"list":[{"any":[{"a":1.50},1e999,null]}]}"#);
        let members = members.unwrap();
        assert_eq!((members.number, members.nullable), (Some(u64::MAX), Some(None)));
        let any = serde_json::to_string(&members.list[0].any).unwrap();
        assert_eq!(any.to_lowercase().replace("e+", "e"), r#"[{"a":1.50},1e999,null]"#, "each digit is there");
        assert_eq!(read(r#"{"nullable":"a"}"#).unwrap().nullable, Some(Some("a".to_owned())));
    }

    #[test]
    fn a_refusal_names_the_member_and_what_is_expected() {
        for (text, code, detail) in [
            (r#"{"other":1}"#, "member_unknown", "other: there is no such member"),
            (r#"{"list":[{"any":1},{"any":1,"or":2}]}"#, "member_unknown", "list[1].or: there is no such member"),
            (r#"{"list":[{}]}"#, "member_invalid", "list[0].any: the member is missing"),
            (r#"{"list":[1]}"#, "member_invalid", "list[0]: an object of any is expected"),
            (r#"{"number":null}"#, "member_invalid", "number: u64 is expected"),
            (r#"{"number":1.0}"#, "member_invalid", "number: u64 is expected"),
            (r#"{"number":18446744073709551616}"#, "member_invalid", "number: u64 is expected"),
            (r#"{"nullable":7}"#, "member_invalid", "nullable: a string is expected"),
        ] {
            let problem = serde_json::to_value(read(text).unwrap_err()).unwrap();
            assert_eq!((&problem["code"], &problem["detail"]), (&code.into(), &detail.into()), "{text}");
        }
    }
}
