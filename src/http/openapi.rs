//! `/openapi.json`: the API's description in OpenAPI 3.1.
//!
//! Every route is documented, because `utoipa_axum::routes!` takes route and description from the handler. The handler
//! describes only the specific parts of its call, and lists its own problem codes in `x-codes`. This file adds the
//! derived parts. They are the problems of all calls, the problems of calls with a body, a consumer or a job, and the
//! required scope.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use axum::Extension;
use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

use crate::http::access;
use crate::http::code::Code;
use crate::http::exports::submit::{Submitted, SubmittedDatasets};
use crate::http::problem::Problem;
use crate::http::schemas::DatasetName;
use crate::job::json::ConsumerSchema;
use pg_rows::encoding::{Compression, Format};

/// The parts of the document that do not belong to a call.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "cdc-export",
        description = "Exports the rows of a Postgres table to downstream consumers as files. A consumer requests a full, incremental or delta \
            export. A background job writes the file, and the consumer's watermark moves in the same transaction.\n\n\
            The loading rule: a consumer's position moves when the file is complete, not when it has been loaded. A client that requests two \
            exports and loads only one misses the rows of the other. The file still exists, even if the response was lost. A loader continues with \
            `GET /exports?consumer=…&dataset=…&after={jobId}`, where `jobId` is the export that it loaded last. It loads the listed exports, \
            oldest first.\n\n\
            Names are camelCase. Times are RFC 3339 in UTC with microseconds. Errors are `application/problem+json` (RFC 9457) with a \
            stable `code`. The service refuses unknown members of a body and unknown \
            parameters of a query by name. Every response to a valid HTTP request has an `X-Request-Id`.\n\n\
            With `AUTH=keys`, a call needs a key: `Authorization: Bearer cdcx_…`. The same applies if the service listens beyond this machine \
            without `AUTH=local` or `AUTH=none`. Each call names the scope that it needs; `admin` includes all scopes.",
    ),
    tags(
        (name = "exports", description = "Request an export, follow it, download its file."),
        (name = "watermarks", description = "The watermarks of consumers."),
        (name = "schedules", description = "The exports that the service requests periodically."),
        (name = "datasets", description = "The tables that may be exported."),
        (name = "deliveries", description = "The events about ended exports and their delivery to receivers."),
        (name = "demo", description = "The demo table."),
        (name = "service", description = "Monitoring and documentation of this process."),
    ),
    components(schemas(Submitted, SubmittedDatasets, Problem, ConsumerSchema, DatasetName)),
)]
pub(crate) struct Base;

/// The document of a router's routes as text. The first request for it creates the text.
#[derive(Clone)]
pub(crate) struct RouterDocument(Arc<LazyLock<String, Box<dyn FnOnce() -> String + Send>>>);

impl RouterDocument {
    pub(crate) fn new(api: OpenApi) -> RouterDocument {
        RouterDocument(Arc::new(LazyLock::new(Box::new(|| format!("{:#}\n", document(api))))))
    }
}

/// Get the API's description, OpenAPI 3.1
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "getOpenapi", tag = "service",
    responses((status = 200, description = "This document.", body = Object)),
)]
pub(crate) async fn get(Extension(RouterDocument(text)): Extension<RouterDocument>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], (**text).clone())
}

fn document(api: OpenApi) -> Value {
    let mut value = serde_json::to_value(api).expect("a document has string keys");
    value["servers"] = json!([{ "url": "/", "description": "The service that serves this document." }]);
    value["components"]["headers"] = headers();
    value["components"]["parameters"] = json!({ "X-Request-Id": {
        "name": "X-Request-Id", "in": "header", "required": false, "schema": { "type": "string" }, "example": "my-request-1",
        "description": "An id for the request: 1 to 128 visible ASCII characters that contain no key. The response and the log contain it. \
            If it is missing or invalid, the service generates a UUID.",
    }});
    value["components"]["securitySchemes"] = json!({ "key": {
        "type": "http", "scheme": "bearer", "bearerFormat": "cdcx_…",
        "description": "A key created by `cdc-export keys create`. Each call names the scope that it needs.",
    }});
    // The items of a page reference their schema instead of repeating it.
    for (name, schema) in members(&mut value["components"]["schemas"]) {
        if let Some(of) = name.strip_prefix("Page_") {
            schema["properties"]["items"]["items"] = json!({ "$ref": format!("#/components/schemas/{of}") });
        }
    }
    // The derives cannot express these constraints.
    value["components"]["schemas"]["NewExport"]["properties"]["columns"]["uniqueItems"] = json!(true);
    for schema in ["Options", "NewExport"] {
        let of_one = json!({ "required": ["dataset", "datasets"] });
        let of_one_file = json!({ "required": ["afterSha256", "datasets"] });
        let refused: Vec<_> = Format::ALL.iter().map(absent_compressions).chain([of_one, of_one_file]).collect();
        value["components"]["schemas"][schema]["not"] = json!({ "anyOf": refused });
    }
    let optional = optional_bodies(&value);
    let mut shared = Map::new();
    for (path, item) in members(&mut value["paths"]) {
        for (method, operation) in members(item) {
            if let Some(body) = operation.get_mut("requestBody") {
                let schema = body["content"]["application/json"]["schema"]["$ref"].as_str().unwrap_or_default();
                body["required"] = json!(!optional.contains(schema));
            }
            let method: Method = method.to_ascii_uppercase().parse().expect("the keys of a path item are methods");
            complete(&method, path, operation, &mut shared);
        }
    }
    value["components"]["responses"] = Value::Object(shared);
    value
}

/// Returns the members of a value that is an object in every document.
fn members(value: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    value.as_object_mut().into_iter().flatten()
}

/// Returns the schema of the bodies that ask for a compression which the format doesn't have.
fn absent_compressions(format: &Format) -> Value {
    let absent = Compression::ALL.iter().filter(|compression| !format.spec().compressions.contains(compression));
    // A body without a format asks for this one.
    let required: &[_] = if *format == Format::Csv { &["compression"] } else { &["format", "compression"] };
    json!({
        "properties": { "format": { "enum": [format] }, "compression": { "enum": absent.collect::<Vec<_>>() } },
        "required": required,
    })
}

/// Returns the schemas without a required member. A body with such a schema is optional.
fn optional_bodies(document: &Value) -> BTreeSet<String> {
    let schemas = document["components"]["schemas"].as_object().into_iter().flatten();
    let optional = schemas.filter(|(_, schema)| schema.get("required").is_none());
    optional.map(|(name, _)| format!("#/components/schemas/{name}")).collect()
}

/// Returns the headers that many responses share.
fn headers() -> Value {
    let header = |kind: &str, description: &str| json!({ "required": true, "schema": { "type": kind }, "description": description });
    json!({
        "X-Request-Id": header("string", "The id of the request, which the log also contains."),
        "Retry-After": header("integer", "The number of seconds to wait before the next attempt."),
        "WWW-Authenticate": header("string", "The authentication scheme (RFC 6750), and the error of the key if one was sent."),
        "Content-Range": header("string", "The range of this part, or `bytes */` and the file's size."),
    })
}

fn header_ref(name: &str) -> Value {
    json!({ "$ref": format!("#/components/headers/{name}") })
}

/// Completes the description of a call with the derived parts.
fn complete(method: &Method, path: &str, operation: &mut Value, shared: &mut Map<String, Value>) {
    let mut codes = codes_of(path, operation);
    // All calls except the health checks have a rate limit. A call that needs a key also looks up the key and takes a
    // slot of the active connections.
    if !access::is_unlimited(path) {
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
        // A described header is always present.
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

/// Returns the codes of the problems that a call may return, without those of keys.
fn codes_of(path: &str, operation: &mut Value) -> Vec<Code> {
    let own = operation.as_object_mut().and_then(|operation| operation.remove("x-codes")).unwrap_or_default();
    let own = own.as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut codes: Vec<Code> = own.map(|code| code.parse().expect("`x-codes` contains only codes")).collect();
    codes.extend([Code::HostNotLocal, Code::ProxyNotAllowed, Code::OriginNotAllowed]);
    codes.extend([Code::ParameterUnknown, Code::UriTooLong, Code::HeadersTooLarge, Code::Internal]);
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        match (parameter["name"].as_str().unwrap_or_default(), parameter["in"].as_str()) {
            ("X-Consumer-ID" | "consumer_id", _) => {
                codes.extend([Code::ConsumerInvalid, Code::ConsumerNotAllowed, Code::DatasetNotAllowed]);
                if !path.contains("consumer_id") {
                    codes.push(Code::ConsumerRequired);
                }
            }
            // Only the calls that create a job accept it.
            ("Idempotency-Key", _) => {
                codes.extend([Code::IdempotencyKeyInvalid, Code::IdempotencyKeyReused, Code::TooManyOpenJobs]);
                codes.extend([Code::TableMissing, Code::TableUnreadable, Code::DatasetMismatch]);
                codes.extend([Code::PermissionDenied, Code::NotTracked, Code::OutputMissing]);
            }
            ("jobId", _) => codes.push(Code::NotFound),
            ("consumerId", _) => codes.extend([Code::ConsumerInvalid, Code::ConsumerNotAllowed, Code::NotFound]),
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
            // All problems share one schema. A schema per status would become a class per status in a generated client.
            "schema": { "$ref": "#/components/schemas/Problem" },
            "examples": examples,
        }},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_code_is_documented_at_a_call_that_may_return_it() {
        let document = document(crate::http::routes().into_openapi());
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["ProblemCode"]["enum"], json!(Code::ALL));
        assert_eq!(schemas["Problem"]["properties"]["code"]["$ref"], "#/components/schemas/ProblemCode");
        let calls = document["paths"].to_string();
        for code in Code::ALL {
            // This code belongs to methods and paths without a call.
            let of_no_call = *code == Code::MethodNotAllowed;
            let is_listed = calls.contains(&format!(".{code}.")) || calls.contains(&format!(".{code}\""));
            assert!(is_listed != of_no_call, "{code}: add it to `x-codes` of the calls that may return it");
        }
    }
}
