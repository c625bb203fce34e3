//! Members and parameters that no code reads, or that a request has twice, are refused by name. An answer is stored in
//! no cache.

use reqwest::Response;
use serde_json::{Value, json};

use crate::harness::{Database, Service, Start, refusal, serving_users};
use crate::openapi;

const JOB: &str = "01900000-0000-7000-8000-000000000000";
/// Name that one JSON library gives a text that it must read as JSON.
const RAW_VALUE: &str = "$serde_json::private::RawValue";

async fn send(service: &Service, method: &str, path: &str, body: Option<&str>) -> Response {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = service.client.request(method, format!("{}{path}", service.address)).header("X-Consumer-ID", "a");
    if let Some(body) = body {
        request = request.header("Content-Type", "application/json").body(body.to_owned());
    }
    request.send().await.unwrap()
}

/// That a call is refused for one part of it, with a code that the document tells.
async fn refused(service: &Service, method: &str, path: &str, body: Option<&str>, code: &str, field: &str) {
    let answer = send(service, method, path, body).await;
    assert_eq!(answer.status(), 400, "{method} {path} {body:?}");
    openapi::assert_told(method, path, 400, Some(code));
    let problem: Value = answer.json().await.unwrap();
    assert_eq!((&problem["code"], &problem["field"]), (&json!(code), &json!(field)), "{method} {path} {body:?}");
    assert!(problem["detail"].as_str().unwrap().starts_with(&format!("{field}: ")), "{problem}");
}

/// Nothing was asked for and nobody was moved.
async fn assert_untouched(database: &Database) {
    let rows = "select (select count(*) from exports) + (select count(*) from watermarks)";
    assert_eq!(database.one::<i64>(rows).await, 0);
}

#[tokio::test]
async fn a_parameter_that_nobody_reads_is_refused_on_every_route() {
    let (database, service) = serving_users(0).await;
    let mut calls = openapi::paths();
    calls.extend(["/", "/page/app.js", "/page/nothing.js"].map(|path| ("GET".to_owned(), path.to_owned())));
    assert!(calls.len() > 25, "{calls:?}");
    for (method, path) in &calls {
        let path =
            path.replace("{jobId}", JOB).replace("{consumer_id}", "a").replace("{name}", "users").replace("{id}", "1");
        refused(&service, method, &format!("{path}?nothere=1"), None, "parameter_unknown", "nothere").await;
        refused(&service, method, &format!("{path}?nothere"), None, "parameter_unknown", "nothere").await;
        // As somebody else writes it.
        refused(&service, method, &format!("{path}?Consumer=a"), None, "parameter_unknown", "Consumer").await;
        refused(&service, method, &format!("{path}?%6eothere=1"), None, "parameter_unknown", "nothere").await;
    }
    // The one that was found: an export of `users`, and a forgotten watermark.
    refused(&service, "POST", "/exports/delta?dataset=nothere", None, "parameter_unknown", "dataset").await;
    refused(&service, "POST", "/exports?exportType=delta", None, "parameter_unknown", "exportType").await;
    refused(&service, "DELETE", "/exports/watermark?consumer=b", None, "parameter_unknown", "consumer").await;
    assert_eq!(service.call("HEAD", &format!("/exports/{JOB}/download?part=2"), &[]).await.status(), 400);

    // A known parameter is given once.
    for (method, path, field) in [
        ("GET", "/exports?limit=1&limit=2".to_owned(), "limit"),
        ("GET", "/exports?consumer=a&status=failed&consumer=a".to_owned(), "consumer"),
        ("GET", "/consumers?cursor=&cursor=".to_owned(), "cursor"),
        ("GET", format!("/exports/{JOB}?wait=1&wait=1"), "wait"),
        ("GET", "/exports/watermark?dataset=users&dataset=users".to_owned(), "dataset"),
        ("DELETE", "/exports/watermark?dataset=users&dataset=other".to_owned(), "dataset"),
    ] {
        refused(&service, method, &path, None, "parameter_invalid", field).await;
    }
    // A query of nothing is none.
    for path in ["/exports?", "/exports?&", "/health?", "/?"] {
        assert_eq!(service.call("GET", path, &[]).await.status(), 200, "{path}");
    }
    // An unknown path or method is reported before an unknown parameter.
    service.refuses("GET", "/nowhere?nothere=1", &[], 404, "not_found").await;
    service.refuses("PATCH", "/exports?nothere=1", &[], 405, "method_not_allowed").await;
    assert_untouched(&database).await;
    service.stop().await;

    // A caller without a key doesn't learn that a parameter is unknown.
    let service = Start::on(&database).with("AUTH", "keys").service().await;
    service.refuses("GET", "/exports?nothere=1", &[], 401, "key_required").await;
    service.stop().await;

    let worker = Start::on(&database).arguments(&["worker"]).with("METRICS_PORT", "0").service().await;
    refused(&worker, "GET", "/metrics?nothere=1", None, "parameter_unknown", "nothere").await;
}

#[tokio::test]
async fn a_member_that_is_given_twice_is_refused() {
    let (database, service) = serving_users(0).await;
    let twice = async |method: &str, path: &str, body: &str, field: &str| {
        refused(&service, method, path, Some(body), "member_invalid", field).await;
    };
    for path in ["/exports", "/exports/full", "/exports/incremental", "/exports/delta", "/export/a"] {
        twice("POST", path, r#"{"dataset":"users","dataset":"users"}"#, "dataset").await;
        twice("POST", path, r#"{"format":"csv","compression":"none","format":"ndjson"}"#, "format").await;
        // The same name, written in another way.
        twice("POST", path, r#"{"format":"csv","f\u006frmat":"ndjson"}"#, "format").await;
        // Twice is said before unknown: neither of the two is what was meant.
        twice("POST", path, r#"{"colour":1,"colour":2}"#, "colour").await;
    }
    twice("POST", &format!("/exports/{JOB}/retry"), r#"{"a":1,"a":1}"#, "a").await;
    for (filter, field) in [
        (r#"[{"column":"id","op":"eq","value":1,"value":2}]"#, "filter[0].value"),
        (
            r#"[{"column":"id","op":"eq","value":1},{"column":"id","column":"id","op":"eq","value":2}]"#,
            "filter[1].column",
        ),
        (r#"[{"column":"id","op":"in","value":[{"a":{"b":1,"b":2}}]}]"#, "filter[0].value[0].a.b"),
    ] {
        let body = format!(r#"{{"filter":{filter}}}"#);
        let answer = service.client.post(format!("{}/exports", service.address)).body(body);
        let answer = answer.header("Content-Type", "application/json").send().await.unwrap();
        let problem: Value = answer.json().await.unwrap();
        assert_eq!((&problem["code"], &problem["field"]), (&json!("member_invalid"), &json!(field)), "{problem}");
    }
    assert_untouched(&database).await;

    // Names that two objects share, and numbers of every kind, are nobody's double.
    let body = r#"{"filter":[{"column":"id","op":"eq","value":1.0},{"column":"id","op":"in","value":[1,1e2,-3]}]}"#;
    let answer = service.client.post(format!("{}/exports", service.address)).body(body);
    assert_ne!(
        refusal(answer.header("Content-Type", "application/json").send().await.unwrap()).await.1,
        "invalid_body"
    );
    // A long name above much is no work: with the product of the two no answer would come.
    let deep = format!(r#"{{"{}":[{}1]}}"#, "n".repeat(400_000), "1,".repeat(250_000));
    assert_eq!(send(&service, "POST", "/exports/delta", Some(&deep)).await.status(), 400);
}

/// Arrays in objects whose only member names a text that is JSON again, and so on: each text looks shallow.
fn nested_texts(texts: usize, arrays: usize) -> String {
    let quote = |level: usize| match level {
        0 => "\"".to_owned(),
        level => format!("\\{}u0022", "u005c".repeat(level - 1)),
    };
    let before = |level| format!("{}{{{q}{RAW_VALUE}{q}:{q}", "[".repeat(arrays), q = quote(level));
    let after = |level| format!("{}}}{}", quote(level), "]".repeat(arrays));
    let (before, after): (String, Vec<_>) = ((0..texts).map(before).collect(), (0..texts).rev().map(after).collect());
    format!("{{\"a\":{before}1{}}}", after.concat())
}

#[tokio::test]
async fn a_name_that_a_library_gives_a_meaning_is_an_unknown_member() {
    let (database, service) = serving_users(0).await;
    let number = "$serde_json::private::Number";
    let twice = r#""{\"dataset\":\"users\",\"dataset\":\"users\"}""#;
    for (method, path) in [("POST", "/exports"), ("POST", "/exports/delta")] {
        for (body, field) in [
            (format!(r#"{{"{RAW_VALUE}":{twice}}}"#), RAW_VALUE.to_owned()),
            (format!(r#"{{"\u0024serde_json::private::RawValue":{twice}}}"#), RAW_VALUE.to_owned()),
            (format!(r#"{{"{number}":"5"}}"#), number.to_owned()),
            (format!(r#"{{"limit":{{"{number}":"5"}}}}"#), format!("limit.{number}")),
            (format!(r#"{{"filter":[{{"a":1,"{number}":5}}]}}"#), format!("filter[0].{number}")),
        ] {
            refused(&service, method, path, Some(&body), "member_unknown", &field).await;
        }
        // In one body these are 50 KB and 6,000 levels, of which no text has more than 101.
        assert_eq!(send(&service, method, path, Some(&nested_texts(60, 100))).await.status(), 400);
    }
    assert_untouched(&database).await;
}

#[tokio::test]
async fn an_answer_is_kept_by_nobody_and_is_no_other_origins() {
    let database = Database::with_users(25).await;
    let service = Start::on(&database).with("CORS_ORIGINS", "https://app.example.com").service().await;
    let (job, _) = service.export("full", "a").await;
    let id = job["jobId"].as_str().unwrap();
    let header = |answer: &Response, name: &str| {
        let values: Vec<_> =
            answer.headers().get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect();
        assert_eq!(values.len(), 1, "{name}: {values:?}");
        values.into_iter().next().unwrap()
    };
    for (method, path, status) in [
        ("GET", "/exports".to_owned(), 200),
        ("GET", format!("/exports/{id}/events"), 200),
        ("GET", "/consumers".to_owned(), 200),
        ("GET", "/datasets".to_owned(), 200),
        ("DELETE", "/exports/watermark".to_owned(), 204),
        ("GET", "/metrics".to_owned(), 200),
        ("GET", "/openapi.json".to_owned(), 200),
        ("OPTIONS", "/exports".to_owned(), 200),
    ] {
        let answer =
            service.call(method, &path, &[("X-Consumer-ID", "a"), ("Access-Control-Request-Method", "GET")]).await;
        assert_eq!(answer.status(), status, "{method} {path}");
        assert_eq!(header(&answer, "cache-control"), "no-store", "{method} {path}");
        assert_eq!(header(&answer, "cross-origin-resource-policy"), "same-origin", "{method} {path}");
    }
}
