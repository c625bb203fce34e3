//! The HTTP contract: what is accepted, what is refused and how, and the shape of every answer.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use cdc_export::key::PresentedKey;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor, PgPool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Database, HANG_TIMEOUT, PROMPT, Service, Start, UNKNOWN_JOB, eventually, serving_users, until};
use crate::openapi;

const CONSUMER: (&str, &str) = ("X-Consumer-ID", "a");
const JSON: (&str, &str) = ("Content-Type", "application/json");

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    /// Checks what every answer has.
    async fn of(response: reqwest::Response) -> Answer {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let answer = Answer { status, headers, body: response.bytes().await.unwrap().to_vec() };
        assert!(!answer.header("x-request-id").is_empty());
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin");
        assert_eq!(answer.header("cross-origin-opener-policy"), "same-origin");
        assert_eq!(answer.header("content-security-policy"), "default-src 'none'; frame-ancestors 'none'");
        answer
    }

    /// Checks that the document has it.
    fn told(self, method: &str, path: &str) -> Answer {
        let problem: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        openapi::assert_told(method, path, self.status, problem["code"].as_str());
        self
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {:?}", self.headers)).to_str().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {:?}", self.text()))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn success(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/json");
        self.json()
    }

    /// The detail of an error, which has the shape of RFC 9457 and ours.
    fn problem(&self, status: u16, code: &str) -> String {
        let mut body = self.json();
        if let Some(members) = body.as_object_mut() {
            members.remove("field");
        }
        assert_eq!((self.status, &body["code"]), (status, &json!(code)), "{body}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(members(&body), BTreeSet::from(["code", "detail", "status", "title", "type"]));
        assert_eq!(body["status"], status);
        for text in ["type", "title", "detail"] {
            assert!(body[text].as_str().is_some_and(|text| !text.is_empty()), "{body}");
        }
        assert_eq!(self.headers.contains_key("retry-after"), status == 503, "{:?}", self.headers);
        body["detail"].as_str().unwrap().to_owned()
    }

    fn problem_of(&self, status: u16, code: &str, field: &str) -> String {
        assert_eq!(self.json()["field"], field, "{}", self.text());
        self.problem(status, code)
    }
}

async fn call(service: &Service, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    Answer::of(service.call(method, path, headers).await).await.told(method, path)
}

async fn get(service: &Service, path: &str) -> Answer {
    call(service, "GET", path, &[]).await
}

async fn post(service: &Service, path: &str, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
    let mut request = service.client.post(format!("{}{path}", service.address)).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::of(request.send().await.unwrap()).await.told("POST", path)
}

fn members(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

fn text<'a>(object: &'a Value, member: &str) -> &'a str {
    object[member].as_str().unwrap_or_else(|| panic!("{member} is no text: {object}"))
}

/// RFC 3339 in UTC with exactly six digits of a second.
pub(crate) fn is_time(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    text.len() == "2026-02-26T04:30:00.123456Z".len()
        && text.ends_with('Z')
        && chrono::DateTime::parse_from_rfc3339(text).is_ok()
}

fn download_of(job: &Value) -> String {
    format!("/exports/{}/download", text(job, "jobId"))
}

async fn service() -> Service {
    Start::on(&Database::new().await).service().await
}

#[tokio::test]
async fn what_is_not_there_is_refused() {
    let service = service().await;
    for path in ["/batches", "/exports/", "/export/", "/export", "//", "/exports/watermark/x", "/nowhere/%ff"] {
        get(&service, path).await.problem(404, "not_found");
    }
    for path in ["/exports/full/", "//exports/full", "/export/full/", "/export/full"] {
        call(&service, "POST", path, &[CONSUMER]).await.problem(404, "not_found");
    }
    let good_uuid_twice = format!("{UNKNOWN_JOB}{UNKNOWN_JOB}");
    for id in [UNKNOWN_JOB, "x", "0", "%ff", "%00", "%", "..%2f..%2fetc", "'", &good_uuid_twice] {
        get(&service, &format!("/exports/{id}")).await.problem(404, "not_found");
        get(&service, &format!("/exports/{id}/download")).await.problem(404, "not_found");
        call(&service, "POST", &format!("/exports/{id}/cancel"), &[]).await.problem(404, "not_found");
    }
    for (method, path, allowed) in [
        ("PUT", "/exports/full", "POST"),
        ("GET", "/export/a", "POST"),
        ("POST", "/exports/watermark", "GET,HEAD,DELETE"),
        ("PATCH", "/health", "GET,HEAD"),
        ("GET", "/users/1", "DELETE"),
        ("BREW", "/health", "GET,HEAD"),
        ("POST", "/exports/x/download", "GET,HEAD"),
        ("POST", "/exports/dleta", "GET,HEAD,DELETE"),
    ] {
        let answer = call(&service, method, path, &[]).await;
        let detail = answer.problem(405, "method_not_allowed");
        assert_eq!(detail.contains("/exports/delta"), path == "/exports/dleta", "{detail}");
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
    let just_short_enough = format!("/exports?cursor={}", "x".repeat(8192 - "/exports?cursor=".len()));
    get(&service, &just_short_enough).await.problem_of(400, "parameter_invalid", "cursor");
    get(&service, &format!("{just_short_enough}x")).await.problem(414, "uri_too_long");
    for (many, long, status) in [(90, 1, 200), (120, 1, 431), (1, 31 * 1024, 200), (1, 33 * 1024, 431)] {
        let value = "x".repeat(long);
        let answer = call(&service, "GET", "/health", &vec![("X", &*value); many]).await;
        assert_eq!(answer.status, status, "{many} headers of {long} bytes");
        if status == 431 {
            answer.problem(431, "headers_too_large");
        }
    }
}

#[tokio::test]
async fn request_ids_tell_answers_apart() {
    let service = service().await;
    let (first, second) = (get(&service, "/health/live").await, get(&service, "/health/live").await);
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
    let named = call(&service, "GET", "/nowhere", &[("X-Request-Id", "mine")]).await;
    assert_eq!(named.header("x-request-id"), "mine", "a caller's own id is kept, on errors too");
    // The log would have the key.
    let (_, key) = PresentedKey::random();
    for odd in [key.as_str(), &format!("Bearer-{key}"), &key.to_uppercase(), &"a".repeat(129), "a b"] {
        let renamed = call(&service, "GET", "/nowhere", &[("X-Request-Id", odd)]).await;
        assert_eq!(renamed.header("x-request-id").len(), 36, "{odd}");
    }
}

#[tokio::test]
async fn the_log_has_the_cause_of_an_inner_failure() {
    let (database, service) = serving_users(0).await;
    database.run("alter view cdc_export.watermarks rename column last_exported_at to gone").await;
    let answer = call(&service, "GET", "/exports/watermark", &[CONSUMER]).await;
    let detail = answer.problem(500, "internal");
    assert!(!answer.text().contains("last_exported_at") && detail.contains("X-Request-Id"), "{detail}");
    let logged = || {
        service.events("request_failed").into_iter().find(|e| e["span"]["requestId"] == answer.header("x-request-id"))
    };
    let line = eventually("the log has the request's id", async || logged()).await;
    assert!(text(&line, "cause").contains("last_exported_at"), "{line}");
}

#[tokio::test]
async fn bodies_are_read_strictly() {
    let service = service().await;
    let largest = format!("{{{}}}", " ".repeat(999_998));
    post(&service, "/exports", &[JSON], largest.clone()).await.success(202);
    post(&service, "/exports", &[JSON], largest + " ").await.problem(413, "body_too_large");

    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        let answer = post(&service, "/exports", &[("Content-Type", content_type)], "{}").await;
        answer.problem_of(415, "unsupported_media_type", "Content-Type");
        post(&service, "/exports", &[("Content-Type", content_type)], "").await.success(202);
    }
    let untyped = post(&service, "/exports", &[], "{}").await;
    assert!(
        untyped
            .problem_of(415, "unsupported_media_type", "Content-Type")
            .contains("-H 'Content-Type: application/json'")
    );
    for content_type in ["application/json", "APPLICATION/JSON", "application/json; charset=utf-8"] {
        post(&service, "/exports", &[("Content-Type", content_type)], "{}").await.success(202);
    }

    for body in ["[]", "null", "1", "\"full\"", "{", "{}{}", "{'a':1}", "\0", "\u{feff}{}"] {
        for path in ["/exports", "/exports/delta", "/export/a"] {
            post(&service, path, &[JSON, CONSUMER], body).await.problem(400, "invalid_body");
        }
    }
    post(&service, "/exports", &[JSON], &b"{\"exportType\":\"\xff\"}"[..]).await.problem(400, "invalid_body");
    post(&service, "/exports", &[JSON], "{\"a\":".repeat(100_000)).await.problem(400, "invalid_body");

    let unknown = post(&service, "/exports", &[JSON], r#"{"exportType":"full","colour":"red"}"#).await;
    assert!(unknown.problem_of(400, "member_unknown", "colour").contains("colour"));
    let near = post(&service, "/exports", &[JSON], r#"{"exportType":"full","colums":["id"]}"#).await;
    assert_eq!(near.problem_of(400, "member_unknown", "colums"), "colums: there is no such member; is it `columns`?");
    let in_query = post(&service, "/exports/delta?dataset=users", &[JSON, CONSUMER], "{}").await;
    let why = in_query.problem_of(400, "parameter_unknown", "dataset");
    assert_eq!(why, "dataset: this call has no such parameter; a member of its body stands there, as JSON");
    for path in ["/exports/full", "/exports/incremental", "/exports/delta", "/export/a"] {
        let answer = post(&service, path, &[JSON, CONSUMER], r#"{"exportType":"full"}"#).await;
        assert!(answer.problem_of(400, "member_unknown", "exportType").contains("POST /exports"), "{path}");
    }
    for value in ["\"partial\"", "\"FULL\"", "\"\"", "1", "null", "[\"full\"]"] {
        let answer = post(&service, "/exports", &[JSON], format!("{{\"exportType\":{value}}}")).await;
        assert!(answer.problem_of(400, "member_invalid", "exportType").starts_with("exportType: "));
    }
}

#[tokio::test]
async fn consumer_ids_are_checked() {
    let service = service().await;
    let another = call(&service, "POST", "/export/b", &[CONSUMER]).await;
    another.problem_of(400, "consumer_invalid", "X-Consumer-ID").find("the path names another").unwrap();
    let needs_one = [
        ("POST", "/exports/full"),
        ("POST", "/exports/incremental"),
        ("POST", "/exports/delta"),
        ("GET", "/exports/watermark"),
    ];
    for (method, path) in needs_one {
        let missing = call(&service, method, path, &[]).await;
        assert!(missing.problem_of(400, "consumer_required", "X-Consumer-ID").contains("X-Consumer-ID"), "{path}");
        call(&service, method, path, &[CONSUMER, CONSUMER]).await.problem_of(400, "consumer_invalid", "X-Consumer-ID");
    }
    let longest = format!("9{}", "x".repeat(127));
    for id in ["", "-a", ".a", "_a", "a b", "a/b", "a'", "a;b", "a,b", &format!("{longest}x")] {
        let answer = call(&service, "POST", "/exports/full", &[("X-Consumer-ID", id)]).await;
        answer.problem_of(400, "consumer_invalid", "X-Consumer-ID");
        call(&service, "POST", "/exports", &[("X-Consumer-ID", id)]).await.problem(400, "consumer_invalid");
    }
    let not_ascii = HeaderValue::from_bytes("aä".as_bytes()).unwrap();
    let request = service.client.post(format!("{}/exports/full", service.address)).header("X-Consumer-ID", not_ascii);
    Answer::of(request.send().await.unwrap()).await.problem(400, "consumer_invalid");
    for id in ["%C3%A4", "a%20b", "-a", "%zz", &format!("{longest}x")] {
        call(&service, "POST", &format!("/export/{id}"), &[]).await.problem_of(400, "consumer_invalid", "consumer_id");
    }
    for id in ["a", "0", "Team.A_1:eu@x-y", &longest] {
        for path in ["/exports/full".to_owned(), format!("/export/{id}")] {
            let job = call(&service, "POST", &path, &[("X-Consumer-ID", id)]).await.success(202);
            assert_eq!(service.job(text(&job, "jobId")).await["consumerId"], id);
        }
    }
}

#[tokio::test]
async fn every_way_to_ask_for_an_export_answers_in_its_shape() {
    let service = service().await;
    let typed = |export_type: &str| json!({ "exportType": export_type }).to_string();
    for (path, consumer, body, export_type, status, prefix) in [
        ("/exports/full", Some("a"), String::new(), "full", "started", "full_a_"),
        ("/exports/incremental", Some("a"), String::new(), "incremental", "started", "incremental_a_"),
        ("/exports/delta", Some("a"), String::new(), "delta", "started", "delta_a_"),
        ("/export/b%3A1", None, String::new(), "incremental", "started", "incremental_b_1_"),
        ("/exports", Some("a"), String::new(), "full", "pending", "full_a_"),
        ("/exports", Some("a"), typed("full"), "full", "pending", "full_a_"),
        ("/exports", Some("a"), typed("incremental"), "incremental", "pending", "incremental_a_"),
        ("/exports", Some("a"), typed("delta"), "delta", "pending", "delta_a_"),
        ("/exports", None, String::new(), "full", "pending", "export_"),
        ("/exports", None, typed("full"), "full", "pending", "export_"),
    ] {
        let headers: Vec<_> = consumer.map(|id| ("X-Consumer-ID", id)).into_iter().chain([JSON]).collect();
        let answer = post(&service, path, &headers, body).await;
        let submitted = answer.success(202);
        let mut expected = BTreeSet::from(["exportType", "jobId", "outputFilename", "status"]);
        // The first export of each of the two consumers.
        expected.extend(["/exports/full", "/export/b%3A1"].contains(&path).then_some("newConsumer"));
        assert_eq!(members(&submitted), expected);
        assert_eq!((text(&submitted, "exportType"), text(&submitted, "status")), (export_type, status), "{path}");
        assert!(text(&submitted, "outputFilename").starts_with(prefix), "{submitted}");
        assert_eq!(answer.header("location"), format!("/exports/{}", text(&submitted, "jobId")));

        let job = get(&service, answer.header("location")).await.success(200);
        for member in ["jobId", "exportType", "outputFilename"] {
            assert_eq!(job[member], submitted[member]);
        }
        let consumer = consumer.or(path.starts_with("/export/").then_some("b:1"));
        assert_eq!(job["consumerId"], json!(consumer));
    }
    for export_type in ["incremental", "delta"] {
        let answer = post(&service, "/exports", &[JSON], typed(export_type)).await;
        let detail = answer.problem_of(400, "consumer_required", "X-Consumer-ID");
        assert!(detail.contains("X-Consumer-ID") && detail.contains(export_type), "{detail}");
    }
}

#[tokio::test]
async fn a_job_and_a_watermark_show_what_is_documented() {
    let (_, service) = serving_users(5).await;
    let missing = call(&service, "GET", "/exports/watermark", &[CONSUMER]).await;
    assert_eq!(missing.problem(404, "no_watermark"), "No watermark for this consumer");

    service.export("full", "a").await;
    let (job, _) = service.export("delta", "a").await;
    let document: Value = serde_json::from_str(include_str!("../../docs/openapi.json")).unwrap();
    assert_eq!(members(&job), members(&document["components"]["schemas"]["Job"]["properties"]));
    for time in ["createdAt", "startedAt", "finishedAt", "watermarkFrom", "watermarkTo"] {
        assert!(is_time(&job[time]), "{time}: {}", job[time]);
    }
    assert!(job["durationSeconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    assert_eq!((&job["dataset"], &job["format"]), (&json!("users"), &json!("csv")));

    let watermark = call(&service, "GET", "/exports/watermark", &[CONSUMER]).await.success(200);
    let expected = json!({ "consumerId": "a", "lastExportedAt": "2026-01-01T00:05:00.000000Z", "dataset": "users" });
    assert_eq!(watermark, expected);
}

#[tokio::test]
async fn a_user_is_soft_deleted_once() {
    let (database, service) = serving_users(5).await;
    let deleted = call(&service, "DELETE", "/users/3", &[]).await.success(200);
    assert_eq!(members(&deleted), BTreeSet::from(["createdAt", "email", "id", "isDeleted", "name", "updatedAt"]));
    assert_eq!((&deleted["id"], &deleted["isDeleted"]), (&json!(3), &json!(true)));
    assert_eq!(deleted["createdAt"], "2026-01-01T00:03:00.000000Z");
    assert!(is_time(&deleted["updatedAt"]) && text(&deleted, "updatedAt") > text(&deleted, "createdAt"));
    let stored = "select is_deleted and updated_at = $1::timestamptz and updated_at > now() - interval '1 minute'
                  from users where id = 3";
    let stored: bool =
        sqlx::query_scalar(stored).bind(text(&deleted, "updatedAt")).fetch_one(&database.pool).await.unwrap();
    assert!(stored, "{deleted}");

    assert_eq!(call(&service, "DELETE", "/users/3", &[]).await.success(200), deleted, "again: nothing changes");
    for id in ["6", "0", "-1", "x", "3x", "3.0", "+3", "003", "%ff", "9223372036854775808", "99999999999999999999999"] {
        call(&service, "DELETE", &format!("/users/{id}"), &[]).await.problem(404, "not_found");
    }
    assert_eq!(database.one::<i64>("select count(*) from users where is_deleted").await, 1);
}

#[tokio::test]
async fn a_failed_export_has_its_reason_and_no_file() {
    let (database, service) = serving_users(0).await;
    // The table goes between the request and the export.
    let mut held = database.hold_exports().await;
    let id = service.submit("full", "a").await;
    held.execute("alter table users rename to away").await.unwrap();
    held.commit().await.unwrap();
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("table_missing")));
    assert_eq!(members(&job["error"]), BTreeSet::from(["code", "detail"]));
    assert!(job["sha256"].is_null() && is_time(&job["finishedAt"]), "{job}");
    assert!(get(&service, &download_of(&job)).await.problem(409, "not_completed").contains("failed"));
    let cancel = format!("/exports/{}/cancel", text(&job, "jobId"));
    assert!(call(&service, "POST", &cancel, &[]).await.problem(409, "already_ended").contains("failed"));
}

#[tokio::test]
async fn web_pages_are_kept_out_unless_the_door_is_open() {
    let database = Database::new().await;
    let kept = Start::on(&database).service().await;
    let open = Start::on(&database).with("AUTH", "none").service().await;
    for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil.example:80"] {
        for path in ["/health", "/", "/page/app.js"] {
            call(&kept, "GET", path, &[("Host", host)]).await.problem_of(403, "host_not_local", "Host");
        }
        get_as(&open, "Host", host).await.success(200);
    }
    for origin in ["http://evil.example", "http://localhost:1", "null", "http://127.0.0.1", ""] {
        for (method, path) in [("POST", "/exports"), ("GET", "/"), ("GET", "/page/app.js")] {
            call(&kept, method, path, &[("Origin", origin)]).await.problem_of(403, "origin_not_allowed", "Origin");
        }
        get_as(&open, "Origin", origin).await.success(200);
    }
    for host in ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8080"] {
        get_as(&kept, "Host", host).await.success(200);
    }
    get_as(&kept, "Origin", &kept.address).await.success(200);
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 0);
}

async fn get_as(service: &Service, name: &str, value: &str) -> Answer {
    call(service, "GET", "/health", &[(name, value)]).await
}

#[tokio::test]
async fn a_download_is_the_file_whole_or_a_range_of_it() {
    let (_, service) = serving_users(25).await;
    let (job, _) = service.export("full", "a:b").await;
    let file = std::fs::read(service.path(&job)).unwrap();
    let (path, size) = (download_of(&job), file.len());

    for method in ["GET", "HEAD"] {
        let answer = call(&service, method, &path, &[]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "text/csv; charset=utf-8; header=present");
        let disposition = format!("attachment; filename=\"{}\"", text(&job, "outputFilename"));
        assert_eq!(answer.header("content-disposition"), disposition);
        assert_eq!(answer.header("content-length"), size.to_string());
        assert_eq!(answer.header("etag"), format!("\"{}\"", text(&job, "sha256")));
        assert_eq!(answer.header("accept-ranges"), "bytes");
        assert_eq!(answer.body, if method == "GET" { &file[..] } else { &[] });
    }
    let named = get(&service, &format!("{path}?dataset=users")).await;
    assert_eq!((named.status, &named.body), (200, &file));
    assert_eq!(get(&service, &format!("{path}?dataset=orders")).await.status, 404, "an export that the job lacks");

    for (range, first, last) in [
        ("bytes=0-3", 0, 3),
        ("bytes=5-5", 5, 5),
        ("bytes=7-", 7, size - 1),
        ("bytes=-10", size - 10, size - 1),
        ("bytes=3-999999999", 3, size - 1),
        ("bytes=-999999999", 0, size - 1),
    ] {
        let answer = call(&service, "GET", &path, &[("Range", range)]).await;
        assert_eq!(answer.status, 206, "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {first}-{last}/{size}"));
        assert_eq!(answer.header("content-length"), (last - first + 1).to_string());
        assert_eq!(answer.body, file[first..=last], "{range}");
    }
    for range in [format!("bytes={size}-"), "bytes=999999999-".to_owned(), "bytes=-0".to_owned()] {
        let answer = call(&service, "GET", &path, &[("Range", &range)]).await;
        answer.problem_of(416, "range_not_satisfiable", "Range");
        assert_eq!(answer.header("content-range"), format!("bytes */{size}"));
    }
    for range in ["bytes=0-1,4-5", "bytes=5-4", "bytes=a-b", "bytes", "rows=0-1", ""] {
        let answer = call(&service, "GET", &path, &[("Range", range)]).await;
        assert_eq!((answer.status, &answer.body), (200, &file), "{range}: the whole file");
        assert!(!answer.headers.contains_key("content-range"));
    }
    let head = call(&service, "HEAD", &path, &[("Range", "bytes=0-3")]).await;
    assert_eq!(head.status, 200, "only a GET has ranges (RFC 9110, 14.2)");
    assert_eq!(head.header("content-length"), size.to_string());
}

#[tokio::test]
async fn a_download_obeys_its_conditions() {
    let (_, service) = serving_users(0).await;
    let (job, _) = service.export("full", "a").await;
    let file = std::fs::read(service.path(&job)).unwrap();
    let path = download_of(&job);
    let whole = get(&service, &path).await;
    let (etag, modified) = (whole.header("etag"), whole.header("last-modified"));

    let matching = call(&service, "GET", &path, &[("Range", "bytes=1-2"), ("If-Range", etag)]).await;
    assert_eq!((matching.status, &matching.body[..]), (206, &file[1..=2]));
    for other in ["\"other\"", &format!("W/{etag}"), etag.trim_matches('"'), modified] {
        let answer = call(&service, "GET", &path, &[("Range", "bytes=1-2"), ("If-Range", other)]).await;
        assert_eq!((answer.status, &answer.body), (200, &file), "{other}");
        let past_the_end = call(&service, "GET", &path, &[("Range", "bytes=999999-"), ("If-Range", other)]).await;
        assert_eq!(past_the_end.status, 200, "{other}");
    }

    for tags in [etag, "*", &format!("\"other\", {etag}")] {
        let answer = call(&service, "GET", &path, &[("If-Match", tags), ("Range", "bytes=1-2")]).await;
        assert_eq!((answer.status, &answer.body[..]), (206, &file[1..=2]), "{tags}");
    }
    for tags in ["\"other\"", &format!("W/{etag}"), etag.trim_matches('"')] {
        let answer = call(&service, "GET", &path, &[("If-Match", tags), ("Range", "bytes=1-2")]).await;
        answer.problem_of(412, "precondition_failed", "If-Match");
    }

    for tags in [etag, "*", &format!("\"other\", {etag}"), &format!("W/{etag}")] {
        let answer = call(&service, "GET", &path, &[("If-None-Match", tags), ("Range", "bytes=0-1")]).await;
        assert_eq!((answer.status, answer.body.len()), (304, 0), "{tags}");
        assert_eq!(answer.header("etag"), etag);
        assert!(answer.headers.get("content-length").is_none_or(|length| length == &file.len().to_string()));
    }
    let in_a_second_line = [("If-None-Match", "\"other\""), ("If-None-Match", etag)];
    assert_eq!(call(&service, "GET", &path, &in_a_second_line).await.status, 304);
    for tag in ["\"other\"", etag.trim_matches('"')] {
        let other = call(&service, "GET", &path, &[("If-None-Match", tag)]).await;
        assert_eq!((other.status, &other.body), (200, &file), "{tag}");
    }
}

#[tokio::test]
async fn a_file_that_is_not_the_one_exported_is_gone() {
    let (_, service) = serving_users(5).await;
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil); 6] = [
        ("removed", |path| std::fs::remove_file(path).unwrap()),
        ("replaced by a copy as old as it", |path| {
            let copy = path.with_extension("copy");
            std::fs::copy(path, &copy).unwrap();
            writable(&copy).set_modified(std::fs::metadata(path).unwrap().modified().unwrap()).unwrap();
            std::fs::rename(&copy, path).unwrap();
        }),
        ("written again", |path| std::fs::write(path, std::fs::read(path).unwrap()).unwrap()),
        ("truncated", |path| {
            let modified = std::fs::metadata(path).unwrap().modified().unwrap();
            writable(path).set_len(10).unwrap();
            writable(path).set_modified(modified).unwrap();
        }),
        ("replaced by a folder", |path| {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
        }),
        ("replaced by a link", |path| {
            let elsewhere = path.with_extension("elsewhere");
            std::fs::rename(path, &elsewhere).unwrap();
            std::os::unix::fs::symlink(&elsewhere, path).unwrap();
        }),
    ];
    for (how, spoil) in spoils {
        let (job, _) = service.export("full", "a").await;
        assert_eq!(get(&service, &download_of(&job)).await.status, 200);
        spoil(&service.path(&job));
        for headers in [&[][..], &[("Range", "bytes=0-1")], &[("If-None-Match", "*")]] {
            let detail = call(&service, "GET", &download_of(&job), headers).await.problem(410, "file_gone");
            assert!(!detail.contains(service.output().to_str().unwrap()), "{how}: {detail}");
            assert!(detail.contains("request a full export"), "{how}: {detail}");
        }
        assert_eq!(service.job(text(&job, "jobId")).await["status"], "completed", "{how}: the row stays");
    }
}

fn writable(path: &Path) -> std::fs::File {
    std::fs::File::options().write(true).open(path).unwrap()
}

#[tokio::test]
async fn a_job_is_cancelled_while_it_is_open() {
    let (database, service) = serving_users(0).await;
    let lock = database.hold_exports().await;
    let running = service.submit("full", "a").await;
    let is_processing = |job: &Value| job["status"] == "processing";
    eventually("a worker takes it", || async { Some(service.job(&running).await).filter(is_processing) }).await;
    let waiting = service.submit("delta", "a").await;

    let job = service.job(&waiting).await;
    assert_eq!((&job["status"], &job["progress"], &job["attempt"]), (&json!("pending"), &json!(0), &json!(0)));
    assert!(["startedAt", "finishedAt", "durationSeconds", "sha256", "error"].iter().all(|m| job[m].is_null()));
    assert!(get(&service, &download_of(&job)).await.problem(409, "not_completed").contains("pending"));
    let cancel = |id: &str| format!("/exports/{id}/cancel");
    let cancelled = call(&service, "POST", &cancel(&waiting), &[]).await.success(202);
    assert_eq!((&cancelled["status"], is_time(&cancelled["finishedAt"])), (&json!("cancelled"), true));
    assert_eq!(call(&service, "POST", &cancel(&waiting), &[]).await.success(200), cancelled);
    assert_eq!(service.job(&waiting).await, cancelled);
    get(&service, &download_of(&cancelled)).await.problem(409, "not_completed");

    call(&service, "POST", &cancel(&running), &[]).await.success(202);
    let stopped = service.ended(&running).await;
    assert_eq!(stopped["status"], "cancelled", "although its table is still locked: {stopped}");
    assert_eq!(call(&service, "POST", &cancel(&running), &[]).await.success(200), stopped);
    lock.rollback().await.unwrap();
    assert_eq!(service.watermark("a").await, None);
    until("no file is left", async || service.files().is_empty()).await;

    let (completed, _) = service.export("full", "a").await;
    let too_late = call(&service, "POST", &cancel(text(&completed, "jobId")), &[]).await;
    assert!(too_late.problem(409, "already_ended").contains("completed"));
    call(&service, "POST", &cancel(UNKNOWN_JOB), &[]).await.problem(404, "not_found");
}

#[tokio::test]
async fn health_tells_what_is_wrong() {
    let (_, service) = serving_users(0).await;
    for (path, checks) in [
        ("/health", json!({ "postgres": "ok" })),
        ("/health/live", json!({})),
        ("/health/ready", json!({ "postgres": "ok", "output": "ok", "datasets": "ok" })),
    ] {
        let body = get(&service, path).await.success(200);
        let looks_at_tables = (path == "/health/ready").then_some("asOf");
        assert_eq!(
            members(&body),
            BTreeSet::from_iter(["checks", "status", "timestamp"].into_iter().chain(looks_at_tables))
        );
        assert_eq!((&body["status"], &body["checks"]), (&json!("ok"), &checks));
        assert!(is_time(&body["timestamp"]));
    }

    // Two load balancers and a supervisor ask at once.
    let answers = futures_util::future::join_all((0..40).map(|_| get(&service, "/health/ready"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));

    let (job, _) = service.export("full", "a").await;
    let elsewhere = service.output().with_extension("elsewhere");
    std::fs::rename(service.output(), &elsewhere).unwrap();
    let ready = get(&service, "/health/ready").await;
    let body = ready.success(503);
    assert_eq!(body["status"], "unavailable");
    assert_eq!(
        body["checks"],
        json!({ "postgres": "ok", "output": "the output folder or bucket is missing", "datasets": "ok" })
    );
    assert!(!ready.header("retry-after").is_empty());
    get(&service, &download_of(&job)).await.problem(503, "output_missing");
    for path in ["/health", "/health/live"] {
        get(&service, path).await.success(200);
    }
    std::fs::rename(&elsewhere, service.output()).unwrap();
    get(&service, "/health/ready").await.success(200);
    assert_eq!(get(&service, &download_of(&job)).await.status, 200);
}

#[tokio::test]
async fn a_flood_of_health_checks_costs_one_check_a_second() {
    let database = Database::new().await;
    let start = Start::on(&database).arguments(&["serve", "--no-workers"]);
    let service = start.with("FAILPOINTS", "service.checks=time:1000").service().await;
    let checks = "select query_start::text from pg_stat_activity
                  where datname = current_database() and query like '-- store.other_processes%'";
    let (begun, mut seen) = (Instant::now(), BTreeSet::new());
    while begun.elapsed() < Duration::from_secs(3) {
        let calls = (0..20).map(|at| get(&service, ["/health", "/health/ready"][at % 2]));
        assert!(futures_util::future::join_all(calls).await.iter().all(|answer| answer.status == 200));
        seen.extend(database.all::<String>(checks).await);
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert!(!seen.is_empty() && seen.len() as f64 <= 2.0 + seconds, "{} in {seconds} seconds", seen.len());
}

#[tokio::test]
async fn without_its_database_the_service_says_so_and_comes_back() {
    let database = Database::new().await;
    let service = Start::on(&database).with("FAILPOINTS", PROMPT).service().await;
    let (job, _) = service.export("full", "a").await;
    let admin = PgPool::connect_with(database.options.clone().database("postgres")).await.unwrap();
    accept_connections(&admin, &database, false).await;

    for (method, path) in [
        ("GET", format!("/exports/{}", text(&job, "jobId"))),
        ("GET", download_of(&job)),
        ("GET", "/exports/watermark".to_owned()),
        ("POST", "/exports/full".to_owned()),
        ("POST", format!("/exports/{UNKNOWN_JOB}/cancel")),
        ("DELETE", "/users/1".to_owned()),
    ] {
        let detail = call(&service, method, &path, &[CONSUMER]).await.problem(503, "database_unavailable");
        assert_eq!(detail, "the database is not available: the login is refused", "{method} {path}");
    }
    for path in ["/health", "/health/ready"] {
        let answer = get(&service, path).await;
        let body = answer.success(503);
        assert_eq!(body["status"], "unavailable");
        assert_eq!(body["checks"]["postgres"], "the database is not available: the login is refused");
        assert!(!answer.header("retry-after").is_empty());
    }
    get(&service, "/health/live").await.success(200);

    accept_connections(&admin, &database, true).await;
    until("the API answers again", async || get(&service, "/health").await.status == 200).await;
    service.export("full", "a").await;
}

/// Opens or closes a database to everybody, those who are connected too.
pub(crate) async fn accept_connections(admin: &PgPool, database: &Database, allowed: bool) {
    let name = database.options.get_database().unwrap();
    let alter = format!("alter database {name} allow_connections {allowed}");
    admin.execute(AssertSqlSafe(alter)).await.unwrap();
    eventually("nobody is connected", async || {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = $1";
        let ended: i64 = sqlx::query_scalar(end).bind(name).fetch_one(admin).await.unwrap();
        (allowed || ended == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn slow_clients_are_cut_off_and_hold_up_nobody() {
    let service = service().await;
    let slow_head = connected(&service, "GET /health HTTP/1.1\r\nHost: localhost\r\n").await;
    let head =
        "POST /exports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n";
    let slow_body = connected(&service, head).await;
    let trickling = connected(&service, &format!("{head}{{")).await;
    get(&service, "/health").await.success(200);
    service.export("full", "a").await;

    let (slow_head, slow_body, trickling) = tokio::join!(rest(slow_head), rest(slow_body), rest(trickling));
    assert!(!slow_head.contains("HTTP/1.1 200"), "{slow_head}");
    for answer in [slow_body, trickling] {
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("\"code\":\"request_timeout\"") && answer.contains("x-request-id: "), "{answer}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_request_hold_up_nobody() {
    let service = service().await;
    for sent in [
        "",
        "\r\n\r\n",
        "GET",
        "BREW /health HTTP/1.1\r\n\r\n",
        "GET /health HTTP/1.9\r\nHost: localhost\r\n\r\n",
        "GET /health\r\nHost: localhost\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost\r\n: no name\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        "\0\u{1}\u{7f}ü\r\n\r\n",
    ] {
        let mut stream = connected(&service, sent).await;
        // The service may have closed the connection already.
        let _ = stream.shutdown().await;
        let answer = rest(stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{sent:?}: {answer}");
        get(&service, "/health/live").await.success(200);
    }
    assert!(!service.log().contains("panicked") && service.events("request_failed").is_empty());
}

#[tokio::test]
async fn a_request_that_a_proxy_may_understand_otherwise_is_refused() {
    let (_, service) = serving_users(0).await;
    let twice = "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n";
    for (head, status) in [
        ("GET /health/live HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), "400"),
        (format!("POST /exports HTTP/1.1\r\nHost: localhost\r\n{twice}Connection: close\r\n\r\n0\r\n\r\n"), "400"),
        ("GET /health/live HTTP/1.0\r\nHost: localhost\r\n\r\n".to_owned(), "200"),
    ] {
        let answer = rest(connected(&service, &head).await).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{head}: {answer}");
    }
}

/// The client would send its next request into a connection that is being closed, and get no answer.
#[tokio::test]
async fn an_answer_says_whether_its_connection_stays_open() {
    let (_, service) = serving_users(0).await;
    let chunked = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let long = format!("Content-Length: 70000\r\n\r\n{}", "x".repeat(70_000));
    for body in [chunked, &long, "Content-Length: 70000\r\nExpect: 100-continue\r\n\r\n"] {
        for call in ["DELETE /health", "POST /nothing", "GET /exports"] {
            let stream = connected(&service, &format!("{call} HTTP/1.1\r\nHost: localhost\r\n{body}")).await;
            let answer = rest(stream).await;
            assert!(answer.to_lowercase().contains("\r\nconnection: close\r\n"), "{call} {body:.50}: {answer}");
        }
    }
    // The connection stays open after a body that was read, and without a body.
    let read = "POST /exports/full HTTP/1.1\r\nHost: localhost\r\nX-Consumer-ID: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]";
    let bare = "DELETE /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let last = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answers = rest(connected(&service, &[read, bare, last].concat()).await).await;
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 3, "{answers}");
}

/// A connection to the service on which something was sent.
async fn connected(service: &Service, sent: &str) -> TcpStream {
    let mut stream = TcpStream::connect(service.address.trim_start_matches("http://")).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    stream
}

/// Returns everything that arrives until the service closes the connection.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let read = tokio::time::timeout(HANG_TIMEOUT, stream.read_to_string(&mut text)).await;
    read.expect("the service closes the connection").unwrap();
    text
}

#[tokio::test]
async fn files_of_one_second_have_names_of_their_own() {
    let service = service().await;
    // Manifests of two formats would have the same name.
    for (first, second, format) in
        [("a", "a", "csv"), ("b:c", "b_c", "csv"), ("D", "d", "csv"), ("e@F", "E:f", "csv"), ("g", "g", "ndjson")]
    {
        let (one, two) = submitted_within_a_second(&service, first, second, format).await;
        let stem = text(&one, "outputFilename").strip_suffix(".csv").unwrap();
        assert!(text(&two, "outputFilename").eq_ignore_ascii_case(&format!("{stem}-2.{format}")), "{one} {two}");
        for job in [one, two] {
            let job = service.ended(text(&job, "jobId")).await;
            assert_eq!(get(&service, &download_of(&job)).await.status, 200, "{job}");
        }
    }
}

/// Two submissions whose file names have the same time. Each try has consumers of its own.
async fn submitted_within_a_second(service: &Service, first: &str, second: &str, format: &str) -> (Value, Value) {
    for n in 0..20 {
        let submit = async |consumer: &str, format: &str| {
            let headers = [("X-Consumer-ID", &*format!("{n}{consumer}")), ("Content-Type", "application/json")];
            post(service, "/exports/full", &headers, json!({ "format": format }).to_string()).await.success(202)
        };
        let (one, two) = (submit(first, "csv").await, submit(second, format).await);
        let time = |job: &Value| text(job, "outputFilename").rsplit_once('_').unwrap().1[..16].to_owned();
        if time(&one) == time(&two) {
            return (one, two);
        }
    }
    panic!("no two submissions within a second");
}
