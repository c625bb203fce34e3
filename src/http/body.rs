//! JSON bodies of requests. One struct both parses a body and defines its schema in the API's document.
//!
//! The members are parsed by serde's derives. If serde refuses a body, [`Strict`] parses the body again and looks for
//! an error with higher precedence.

use std::fmt::Display;
use std::marker::PhantomData;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{Deserialize, DeserializeOwned, Deserializer};

use crate::http::REQUEST_TIMEOUT;
use crate::http::code::Code;
use crate::http::problem::Problem;
use cdc_dataset::hint;
use strict_json::{JsonError, Strict};

const MAX_BODY_BYTES: usize = 1_000_000;

/// An optional JSON body. An empty body is equivalent to `{}`, regardless of its `Content-Type`.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<JsonBody<T>, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read(body).await?;
        if bytes.is_empty() {
            return parse(b"{}").map(JsonBody);
        }
        if !says_json(&parts.headers) {
            let detail = "a body must be JSON, and its header has to say so: Content-Type: application/json (with curl, which else says \
                application/x-www-form-urlencoded: -H 'Content-Type: application/json')";
            return Err(Problem::bad_input(Code::UnsupportedMediaType, "Content-Type", detail));
        }
        parse(&bytes).map(JsonBody)
    }
}

async fn read(body: Body) -> Result<bytes::Bytes, Problem> {
    let collected = tokio::time::timeout(REQUEST_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    match collected.map_err(|_| Problem::new(Code::RequestTimeout, "the body did not arrive in time"))? {
        Ok(body) => Ok(body.to_bytes()),
        Err(why) if why.is::<LengthLimitError>() => Err(Problem::new(Code::BodyTooLarge, "a body has 1 MB at most")),
        Err(_) => Err(Problem::bad_body("body: the connection ended before the end of the body")),
    }
}

fn says_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

pub(crate) fn invalid(name: &str, why: impl Display) -> Problem {
    Problem::bad_input(Code::MemberInvalid, name, format!("{name}: {why}"))
}

/// Returns the problem of a member that this call does not accept; `known` lists the accepted ones. If another call
/// accepts the member, the detail names that call.
pub(crate) fn unknown(name: &str, known: &[&str]) -> Problem {
    let why = match name {
        "columns" | "filter" | "limit" => {
            "only an ad-hoc export accepts it, POST /exports without X-Consumer-ID: a consumer's exports contain all rows, so that the next one \
             can continue from them"
        }
        "after" | "afterSha256" | "datasets" | "heal" | "skipEmpty" => {
            "only a consumer's export accepts it: send X-Consumer-ID"
        }
        "exportType" => "only POST /exports accepts it: for the other calls, the path determines the type",
        _ => "there is no such member",
    };
    let own = name.rsplit('.').next().unwrap_or(name);
    let near = hint(own, known.iter().copied());
    Problem::bad_input(Code::MemberUnknown, name, format!("{name}: {why}{near}"))
}

/// Parses an optional member. Without this function, serde would treat null like a missing member.
pub(crate) fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// Parses the object of a body.
///
/// # Errors
/// Errors are reported in this order: text that is not JSON, a member given twice, a member that the struct does not
/// accept.
fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Problem> {
    // serde would also parse a struct from an array.
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err(Problem::bad_body("body: a JSON object is expected"));
    }
    strict_json::read(text, PhantomData::<T>)
        .map_err(|refused| problem_of(strict_json::read(text, Strict::Permitted).err().unwrap_or(refused)))
}

/// Returns the problem of a text that cannot be parsed. serde_json exposes the kind of a data error only in its
/// message.
fn problem_of(JsonError { place, error }: JsonError) -> Problem {
    if !error.is_data() {
        return Problem::bad_body(format!("body: not JSON: {error}"));
    }
    let position = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    let why = text.strip_suffix(&position).unwrap_or(&text);
    if why.starts_with("unknown field `") {
        // The backticks enclose the name of the member and then the names accepted by the struct.
        let known: Vec<_> = why.split('`').skip(3).step_by(2).collect();
        return unknown(&place, &known);
    }
    if let Some(name) = why.strip_prefix("missing field `") {
        let name = name.trim_end_matches('`');
        let member = if place == "." { name.to_owned() } else { format!("{place}.{name}") };
        return invalid(&member, "the member is missing");
    }
    match why.rsplit_once(", expected ") {
        Some((_, expected)) => invalid(&place, format!("{expected} is expected")),
        None => invalid(&place, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::RawValue;

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Members {
        #[serde(default, deserialize_with = "given")]
        number: Option<u64>,
        #[serde(default, deserialize_with = "given")]
        nullable: Option<Option<String>>,
        #[serde(default)]
        list: Vec<Item>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, expecting = "an object of any")]
    struct Item {
        any: Box<RawValue>,
    }

    #[test]
    fn members_are_parsed_exactly() {
        let none = parse::<Members>(b" {}\n").unwrap();
        assert!(none.number.is_none() && none.nullable.is_none() && none.list.is_empty());
        let text = r#"{"number":18446744073709551615,"nullable":null,"list":[{"any":[{"a":1.50},1E999,null]}]}"#;
        let members = parse::<Members>(text.as_bytes()).unwrap();
        assert_eq!((members.number, members.nullable), (Some(u64::MAX), Some(None)));
        assert_eq!(members.list[0].any.get(), r#"[{"a":1.50},1E999,null]"#, "each digit is there");
        let text = parse::<Members>(br#"{"nullable":"a"}"#).unwrap();
        assert_eq!(text.nullable, Some(Some("a".to_owned())));
    }

    #[test]
    fn refusal_names_the_member_and_the_expected_value() {
        for (text, code, detail) in [
            (r#"{"list":[{"any":1},{"any":1,"or":2}]}"#, "member_unknown", "list[1].or: there is no such member"),
            (r#"{"list":[{}]}"#, "member_invalid", "list[0].any: the member is missing"),
            (r#"{"list":[1]}"#, "member_invalid", "list[0]: an object of any is expected"),
            (r#"{"number":null}"#, "member_invalid", "number: u64 is expected"),
            (r#"{"number":1.0}"#, "member_invalid", "number: u64 is expected"),
            (r#"{"number":18446744073709551616}"#, "member_invalid", "number: u64 is expected"),
            (r#"{"number":1,"number":1}"#, "member_invalid", "number: given twice"),
            (
                r#"{"nullable":", expected x"#,
                "invalid_body",
                "body: not JSON: EOF while parsing a string at line 1 column 25",
            ),
            (r#"{"number":", expected x"}"#, "member_invalid", "number: u64 is expected"),
            (r#"{"other":1}{}"#, "invalid_body", "body: not JSON: trailing characters at line 1 column 12"),
            (r#"[]"#, "invalid_body", "body: a JSON object is expected"),
            (r#"{"nullable":7}"#, "member_invalid", "nullable: a string is expected"),
        ] {
            let problem = serde_json::to_value(parse::<Members>(text.as_bytes()).unwrap_err()).unwrap();
            assert_eq!((&problem["code"], &problem["detail"]), (&code.into(), &detail.into()), "{text}");
        }
    }
}
