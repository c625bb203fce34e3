//! `/openapi.json`: what the API says of itself, OpenAPI 3.1.
//!
//! A route is there because it is documented: `utoipa_axum::routes!` takes both from the handler. What a call has of its own it
//! says there, its own problems by their codes (`x-codes`). What follows from that is added here: what every call answers, and
//! those with a body, a consumer or a job; which scope it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{OpenApi, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::http::exports::submit::Submitted;
use crate::http::problem::{Code, Problem};
use crate::http::{access, routes};
use crate::job::encoding::{Compression, Format};
use crate::job::selection::Operator;
use crate::job::{ConsumerId, Continuity, ExportType, FailureCode, Status};

/// The document, as it is served.
pub(crate) static DOCUMENT: LazyLock<Document> = LazyLock::new(|| Document::of(routes().into_openapi()));

/// What all of it begins with.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "cdc-export",
        description = "Hands a Postgres table's rows to downstream consumers as files. A consumer asks for a full, incremental or delta \
            export; a background job writes the file, and the consumer's watermark moves in the same transaction.\n\n\
            Names are camelCase, times RFC 3339 in UTC with microseconds. Errors are `application/problem+json` (RFC 9457) with a \
            stable `code`. Unknown members of a body and unknown \
            parameters of a query are refused by name, and every answer to what can be read as a request has an `X-Request-Id`.\n\n\
            With `AUTH=keys`, and wherever the service listens beyond this machine without `AUTH=local` or `AUTH=none`, a call wants a key: \
            `Authorization: Bearer cdcx_…`. Each call names the scope that it needs; `admin` has them all.",
    ),
    tags(
        (name = "exports", description = "Ask for an export, follow it, fetch its file."),
        (name = "watermarks", description = "Where consumers stand."),
        (name = "datasets", description = "What may be exported."),
        (name = "demo", description = "The demo table."),
        (name = "service", description = "For whoever watches or explores this process."),
    ),
    components(schemas(Submitted, Problem, ConsumerId, DatasetName)),
)]
pub(crate) struct Base;

/// The document, as data and as text.
pub(crate) struct Document {
    /// As data.
    pub(crate) value: Value,
    /// As text.
    pub(crate) json: String,
}

/// The API's own description, OpenAPI 3.1
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "getOpenapi", tag = "service",
    responses((status = 200, description = "This document.", body = Object)),
)]
pub(crate) async fn get() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.json.as_str())
}

/// A word's schema: its type's words, and what each stands for.
fn words<'w>(meaning: &str, words: impl Iterator<Item = (&'w str, &'w str)>) -> RefOr<Schema> {
    let words: Vec<_> = words.collect();
    let list: String = words.iter().map(|(word, stands_for)| format!("\n- `{word}`: {stands_for}")).collect();
    let words = words.into_iter().map(|(word, _)| word.to_owned());
    let object = ObjectBuilder::new().schema_type(Type::String).description(Some(format!("{meaning}:\n{list}")));
    object.enum_values(Some(words)).into()
}

/// The nouns know nothing of documents.
macro_rules! document_words {
    ($($name:ident, $as:literal, $meaning:literal;)+) => {$(
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                words($meaning, $name::ALL.iter().map(|word| (word.as_str(), word.meaning())))
            }
        }

        impl ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                $as.into()
            }
        }
    )+};
}

document_words! {
    ExportType, "ExportType", "Which rows an export holds";
    Status, "Status", "Where a job stands";
    Continuity, "Continuity", "What stands between a consumer's last export and this one, if not just changes";
    FailureCode, "FailureCode", "Why an export failed";
    Format, "Format", "How a file's rows are written";
    Compression, "Compression", "What a file is compressed with, as a whole";
    Operator, "Operator", "How a column is compared with a value";
    Code, "ProblemCode", "What went wrong";
}

/// A consumer's id, as a header, a path or a query names it.
impl PartialSchema for ConsumerId {
    fn schema() -> RefOr<Schema> {
        named("^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$", "search")
    }
}

impl ToSchema for ConsumerId {}

/// A dataset's name. In the code it is a text.
pub(crate) enum DatasetName {}

impl PartialSchema for DatasetName {
    fn schema() -> RefOr<Schema> {
        named("^[a-z][a-z0-9_-]{0,62}$", "users")
    }
}

impl ToSchema for DatasetName {}

fn named(pattern: &str, example: &str) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).examples([example]).into()
}

impl Document {
    fn of(api: OpenApi) -> Document {
        let mut value = serde_json::to_value(api).expect("a document has texts for keys");
        value["servers"] = json!([{ "url": "/", "description": "The service that this document is from." }]);
        value["components"]["headers"] = headers();
        value["components"]["parameters"] = json!({ "X-Request-Id": {
            "name": "X-Request-Id", "in": "header", "required": false, "schema": { "type": "string" }, "example": "my-request-1",
            "description": "A name for the request, 1 to 128 visible ASCII characters, which its answer and the log have too. Another \
                one, or none, is replaced by a UUID.",
        }});
        value["components"]["securitySchemes"] = json!({ "key": {
            "type": "http", "scheme": "bearer", "bearerFormat": "cdcx_…",
            "description": "A key that `cdc-export keys create` made. Each call names the scope that it needs.",
        }});
        // A list's items are named, not told again.
        for (name, schema) in members(&mut value["components"]["schemas"]) {
            if let Some(of) = name.strip_prefix("Page_") {
                schema["properties"]["items"]["items"] = json!({ "$ref": format!("#/components/schemas/{of}") });
            }
        }
        // What the derives have no words for.
        value["components"]["schemas"]["NewExport"]["properties"]["columns"]["uniqueItems"] = json!(true);
        value["components"]["schemas"]["Options"]["not"] = uncompressed_only();
        value["components"]["schemas"]["NewExport"]["not"] = uncompressed_only();
        let optional = optional_bodies(&value);
        let mut shared = Map::new();
        for (path, item) in members(&mut value["paths"]) {
            for (method, operation) in members(item) {
                if let Some(body) = operation.get_mut("requestBody") {
                    let schema = body["content"]["application/json"]["schema"]["$ref"].as_str().unwrap_or_default();
                    body["required"] = json!(!optional.contains(schema));
                }
                let method: Method = method.to_ascii_uppercase().parse().expect("a document's methods are methods");
                complete(&method, path, operation, &mut shared);
            }
        }
        value["components"]["responses"] = Value::Object(shared);
        let json = format!("{value:#}\n");
        Document { value, json }
    }
}

/// The members of what is an object in every document.
fn members(value: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    value.as_object_mut().into_iter().flatten()
}

fn uncompressed_only() -> Value {
    json!({
        "properties": { "format": { "const": "parquet" }, "compression": { "enum": ["gzip", "zstd"] } },
        "required": ["format", "compression"],
    })
}

/// The schemas that nothing satisfies as well.
fn optional_bodies(document: &Value) -> BTreeSet<String> {
    let schemas = document["components"]["schemas"].as_object().into_iter().flatten();
    let optional = schemas.filter(|(_, schema)| schema.get("required").is_none());
    optional.map(|(name, _)| format!("#/components/schemas/{name}")).collect()
}

/// The headers that many answers have.
fn headers() -> Value {
    let header = |kind: &str, description: &str| json!({ "required": true, "schema": { "type": kind }, "description": description });
    json!({
        "X-Request-Id": header("string", "The request's name, which the log has too."),
        "Retry-After": header("integer", "So many seconds later it is worth another try."),
        "WWW-Authenticate": header("string", "How to show a key (RFC 6750), and what is wrong with this one."),
        "Content-Range": header("string", "The part that this is, or `bytes */` and the file's size."),
    })
}

fn header_ref(name: &str) -> Value {
    json!({ "$ref": format!("#/components/headers/{name}") })
}

/// Adds what follows from what a call says of itself.
fn complete(method: &Method, path: &str, operation: &mut Value, shared: &mut Map<String, Value>) {
    let mut codes = codes_of(path, operation);
    // Where a key is asked for, it is looked up and a caller's place taken; and whoever sends too much is refused.
    if !access::is_free(path) {
        codes.push(Code::RateLimited);
    }
    if access::is_open(path) {
        operation["security"] = json!([]);
    } else {
        operation["security"] = json!([{ "key": [access::scope_of(method, path).as_str()] }]);
        codes.extend([
            Code::KeyRequired,
            Code::KeyInvalid,
            Code::ScopeMissing,
            Code::DatabaseUnavailable,
            Code::TooManyConnections,
        ]);
    }
    let mut by_status = BTreeMap::<StatusCode, Vec<Code>>::new();
    for code in Code::ALL.iter().filter(|code| codes.contains(code)) {
        by_status.entry(code.status()).or_default().push(*code);
    }
    for (_, answer) in members(&mut operation["responses"]) {
        // What is said of a header is that it is there.
        for (_, header) in members(&mut answer["headers"]) {
            header["required"] = json!(true);
        }
        answer["headers"]["X-Request-Id"] = header_ref("X-Request-Id");
    }
    for (status, codes) in by_status {
        let words: Vec<_> = codes.iter().map(|code| code.as_str()).collect();
        let name = format!("{}.{}", status.as_u16(), words.join("."));
        operation["responses"][status.as_str()] = json!({ "$ref": format!("#/components/responses/{name}") });
        shared.entry(name).or_insert_with(|| refusal(status, &codes));
    }
    let parameter = json!({ "$ref": "#/components/parameters/X-Request-Id" });
    match operation["parameters"].as_array_mut() {
        Some(parameters) => parameters.push(parameter),
        None => operation["parameters"] = json!([parameter]),
    }
}

/// The problems that a call may answer, but for those of keys.
fn codes_of(path: &str, operation: &mut Value) -> Vec<Code> {
    let own = operation.as_object_mut().and_then(|operation| operation.remove("x-codes")).unwrap_or_default();
    let own = own.as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut codes: Vec<Code> = own.map(|code| code.parse().expect("the handlers name codes")).collect();
    codes.extend([Code::HostNotLocal, Code::ProxyNotAllowed, Code::OriginNotAllowed]);
    codes.extend([Code::ParameterUnknown, Code::UriTooLong, Code::HeadersTooLarge, Code::Internal]);
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        match (parameter["name"].as_str().unwrap_or_default(), parameter["in"].as_str()) {
            ("X-Consumer-ID" | "consumer_id", _) => {
                codes.extend([Code::ConsumerInvalid, Code::ConsumerNotAllowed]);
                if !path.contains("consumer_id") {
                    codes.push(Code::ConsumerRequired);
                }
            }
            ("Idempotency-Key", _) => codes.extend([Code::IdempotencyKeyInvalid, Code::IdempotencyKeyReused]),
            ("jobId", _) => codes.push(Code::NotFound),
            (_, Some("query")) => codes.extend([Code::BadRequest, Code::ParameterInvalid]),
            _ => {}
        }
    }
    if operation.get("requestBody").is_some() {
        codes.extend([Code::InvalidBody, Code::MemberInvalid, Code::MemberUnknown]);
        codes.extend([Code::RequestTimeout, Code::BodyTooLarge, Code::UnsupportedMediaType]);
    }
    codes
}

/// The answer of a status with one of these codes.
fn refusal(status: StatusCode, codes: &[Code]) -> Value {
    let meanings: String = codes.iter().map(|code| format!("\n- `{code}`: {}", code.meaning())).collect();
    let examples: Map<_, _> =
        codes.iter().map(|code| (code.to_string(), json!({ "value": Problem::new(*code, code.meaning()) }))).collect();
    let own = match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Some("Retry-After"),
        StatusCode::UNAUTHORIZED => Some("WWW-Authenticate"),
        StatusCode::RANGE_NOT_SATISFIABLE => Some("Content-Range"),
        _ => None,
    };
    let headers = own.into_iter().chain(["X-Request-Id"]);
    let headers: Map<_, _> = headers.map(|name| (name.to_owned(), header_ref(name))).collect();
    json!({
        "description": format!("{}:\n{meanings}", status.canonical_reason().unwrap_or("Error")),
        "headers": headers,
        "content": { "application/problem+json": {
            "schema": { "allOf": [
                { "$ref": "#/components/schemas/Problem" },
                { "properties": { "code": { "enum": codes }, "status": { "type": "integer", "enum": [status.as_u16()] } } },
            ]},
            "examples": examples,
        }},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::catalog::is_name;
    use proptest::prelude::*;
    use proptest::string::string_regex;

    #[test]
    fn every_code_of_a_problem_is_told_and_where_it_comes() {
        let schemas = &DOCUMENT.value["components"]["schemas"];
        assert_eq!(schemas["ProblemCode"]["enum"], json!(Code::ALL));
        assert_eq!(schemas["Problem"]["properties"]["code"]["$ref"], "#/components/schemas/ProblemCode");
        let calls = DOCUMENT.value["paths"].to_string();
        for code in Code::ALL {
            // Of paths and methods that there are none of.
            let of_no_call = *code == Code::MethodNotAllowed;
            let told = calls.contains(&format!(".{code}.")) || calls.contains(&format!(".{code}\""));
            assert!(told != of_no_call, "{code}: name it where a call may answer it");
        }
    }

    fn pattern(schema: RefOr<Schema>) -> String {
        let schema = serde_json::to_value(schema).unwrap();
        let pattern = schema["pattern"].as_str().unwrap();
        // What makes up texts has no anchors.
        pattern.strip_prefix('^').unwrap().strip_suffix('$').unwrap().to_owned()
    }

    #[test]
    fn names_are_as_their_patterns_say() {
        let consumer = string_regex(&pattern(ConsumerId::schema())).unwrap();
        let dataset = string_regex(&pattern(DatasetName::schema())).unwrap();
        proptest!(|(consumer in consumer, dataset in dataset)| {
            prop_assert!(consumer.parse::<ConsumerId>().is_ok() && is_name(&dataset), "{} {}", consumer, dataset);
        });
        // And the longest are no longer than said.
        let longest = "x".repeat(128);
        assert!(longest.parse::<ConsumerId>().is_ok() && format!("{longest}x").parse::<ConsumerId>().is_err());
        assert!(is_name(&longest[..63]) && !is_name(&longest[..64]));
    }
}
