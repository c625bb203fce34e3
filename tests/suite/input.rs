//! Whatever a client sends: an answer, and no defect of the service.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use reqwest::header::HeaderValue;
use reqwest::{Method, RequestBuilder};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::harness::{Database, HANG_TIMEOUT, Service, Start};

/// A service with an export, and what it takes to call it from a property.
struct Called {
    runtime: Runtime,
    service: Service,
    job: String,
    file: Vec<u8>,
}

/// An answer, read to its end.
struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

impl Called {
    fn new() -> Called {
        let runtime = Runtime::new().unwrap();
        let (service, job, file) = runtime.block_on(async {
            let database = Database::new().await;
            database.add_users(1, 5).await;
            let service = Start::on(&database).service().await;
            let (job, _) = service.export("full", "a").await;
            let file = std::fs::read(service.path(&job)).unwrap();
            (service, job["jobId"].as_str().unwrap().to_owned(), file)
        });
        Called { runtime, service, job, file }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.service.client.request(method, format!("{}{path}", self.service.address)).timeout(HANG_TIMEOUT)
    }

    /// The answer to a request; never that the service failed, and a problem if it is an error.
    fn answer(&self, request: RequestBuilder) -> Result<Answer, TestCaseError> {
        let answer = self.runtime.block_on(async {
            let answer = request.send().await?;
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            Ok::<_, reqwest::Error>(Answer { status, headers, body: answer.bytes().await?.to_vec() })
        });
        let answer = answer.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        let text = String::from_utf8_lossy(&answer.body);
        prop_assert!(answer.status < 500, "{} {text}", answer.status);
        if answer.status >= 400 {
            prop_assert_eq!(&answer.headers["content-type"], "application/problem+json");
            let problem: Value = serde_json::from_slice(&answer.body).unwrap();
            prop_assert!(problem["code"].is_string() && problem["status"] == answer.status, "{text}");
        }
        Ok(answer)
    }

    /// Holds a property against so many inputs, and looks at the log.
    fn holds<S: Strategy>(&self, cases: u32, inputs: &S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
        let config = ProptestConfig { cases, failure_persistence: None, ..Default::default() };
        TestRunner::new(config).run(inputs, property).unwrap();
        let log = self.service.log();
        assert!(!log.contains("panicked") && !log.contains("request_failed"), "{log}");
    }

    fn stop(self) {
        self.runtime.block_on(self.service.stop());
    }
}

/// What a header may hold, and hardly anybody sends.
fn header() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![4 => 0x20..=0x7e_u8, 1 => 0x80..=0xff_u8, 1 => Just(b'\t')], 0..80)
}

/// Every byte by its number, those too that a path may have as they are.
fn encoded(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02X}")).collect()
}

#[test]
fn a_range_is_answered_by_its_bytes_or_by_all() {
    let called = Called::new();
    let size = called.file.len();
    let likely = prop_oneof![
        (0..2 * size, 0..2 * size).prop_map(|(first, last)| format!("bytes={first}-{last}")),
        "bytes=[0-9]{0,22}-[0-9]{0,22}",
        "bytes ?= ?[0-9, -]{0,30}",
    ];
    let range = prop_oneof![likely.prop_map(String::into_bytes), header()];
    let etag = prop_oneof![3 => Just(None), 1 => header().prop_map(Some)];
    called.holds(300, &(range, etag.clone(), etag), |(range, if_range, if_none_match)| {
        let mut request = called.request(Method::GET, &format!("/exports/{}/download", called.job));
        request = request.header("Range", HeaderValue::from_bytes(&range).unwrap());
        for (name, value) in [("If-Range", if_range), ("If-None-Match", if_none_match)] {
            if let Some(value) = value {
                request = request.header(name, HeaderValue::from_bytes(&value).unwrap());
            }
        }
        let answer = called.answer(request)?;
        match answer.status {
            200 => prop_assert_eq!(&answer.body, &called.file),
            206 => {
                let range = answer.headers["content-range"].to_str().unwrap();
                let (range, of) = range.strip_prefix("bytes ").unwrap().split_once('/').unwrap();
                let (first, last) = range.split_once('-').unwrap();
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                prop_assert_eq!(of, size.to_string());
                prop_assert_eq!(&answer.body, &called.file[first..=last]);
            }
            // `*` is any file.
            304 | 416 => {}
            other => prop_assert!(false, "{}", other),
        }
        Ok(())
    });
    called.stop();
}

#[test]
fn a_consumer_is_taken_or_refused_by_its_letters() {
    let called = Called::new();
    let good = |id: &[u8]| {
        (1..=128).contains(&id.len())
            && id[0].is_ascii_alphanumeric()
            && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._:@-".contains(byte))
    };
    let likely = "[A-Za-z0-9._:@-]{1,140}".prop_map(String::into_bytes);
    called.holds(300, &prop_oneof![likely, header()], |id| {
        let id = id.trim_ascii();
        let request = called.request(Method::GET, "/exports/watermark");
        let answer = called.answer(request.header("X-Consumer-ID", HeaderValue::from_bytes(id).unwrap()))?;
        prop_assert_eq!(matches!(answer.status, 200 | 404), good(id), "{}", answer.status);
        // However it is written, a client takes this for a part of the path's own.
        if matches!(id, b"." | b"..") {
            return Ok(());
        }
        // The body is one that makes no job.
        let request = called.request(Method::POST, &format!("/export/{}", encoded(id)));
        let answer = called.answer(request.header("Content-Type", "application/json").body("[]"))?;
        let problem: Value = serde_json::from_slice(&answer.body).unwrap();
        let expected = match id {
            [] => "not_found",
            id if good(id) => "invalid_body",
            _ => "consumer_invalid",
        };
        prop_assert_eq!(problem["code"].as_str(), Some(expected));
        Ok(())
    });
    called.stop();
}

/// A value that a member might have, or might not.
fn value() -> impl Strategy<Value = Value> {
    let words =
        ["full", "delta", "csv", "parquet", "zstd", "users", "id", "name", "updated_at", "2026-01-01T00:00:00Z", "t"];
    let numbers = ["-0.0", "1.0", "18446744073709551616", "9223372036854775807", "0"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        select(numbers.to_vec()).prop_map(|number| serde_json::from_str(number).unwrap()),
        // `text_of` writes it as a number: as a value it would be too large.
        Just(LARGE.into()),
        select(words.to_vec()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((name(), inner), 0..6).prop_map(|members| members.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}

/// Stands for a number that no float holds.
const LARGE: &str = "a large number";

/// A body as a text, with each [`LARGE`] as the number that it stands for.
fn text_of(body: &Value) -> Vec<u8> {
    body.to_string().replace(&format!("\"{LARGE}\""), "1e999").into_bytes()
}

fn name() -> impl Strategy<Value = String> {
    let names =
        ["exportType", "dataset", "format", "compression", "columns", "filter", "limit", "column", "op", "value"];
    prop_oneof![8 => select(names.to_vec()).prop_map(str::to_owned), 1 => any::<String>()]
}

/// A condition that is nearly one.
fn condition() -> impl Strategy<Value = Value> {
    let columns = ["id", "name", "email", "created_at", "updated_at", "is_deleted", "ID", ""];
    let operators = ["eq", "ne", "lt", "lte", "gt", "gte", "in", "isNull", "like"];
    (select(columns.to_vec()), select(operators.to_vec()), value())
        .prop_map(|(column, op, value)| json!({ "column": column, "op": op, "value": value }))
}

#[test]
fn a_body_makes_a_job_or_a_problem() {
    let called = Called::new();
    let with_filter = (vec(condition(), 0..4), vec((name(), value()), 0..2)).prop_map(|(filter, others)| {
        let mut members: Map<_, _> = others.into_iter().collect();
        members.insert("filter".to_owned(), filter.into());
        Value::from(members)
    });
    let members = vec((name(), value()), 0..4).prop_map(|members| members.into_iter().collect::<Map<_, _>>().into());
    let body = prop_oneof![
        2 => with_filter.prop_map(|body| text_of(&body)),
        2 => members.prop_map(|body| text_of(&body)),
        1 => value().prop_map(|body| text_of(&body)),
        1 => vec(any::<u8>(), 0..200),
    ];
    called.holds(500, &(body, any::<bool>()), |(body, consumer)| {
        for path in ["/exports", "/exports/delta"] {
            let request = called.request(Method::POST, path);
            let mut request = request.header("Content-Type", "application/json").body(body.clone());
            if consumer || path != "/exports" {
                request = request.header("X-Consumer-ID", "b");
            }
            let answer = called.answer(request)?;
            prop_assert!(matches!(answer.status, 200 | 202 | 400 | 404 | 409 | 429), "{} {}", path, answer.status);
        }
        Ok(())
    });
    called.stop();
}

#[test]
fn a_cursor_leads_to_a_page_or_is_refused() {
    let called = Called::new();
    let near = prop_oneof![
        (any::<i64>(), any::<u128>()).prop_map(|(micros, id)| format!("{micros}_{}", uuid::Uuid::from_u128(id))),
        "-?[0-9]{0,20}_[0-9a-f-]{0,40}",
        "[A-Za-z0-9._:@-]{0,130}/[a-z0-9_-]{0,64}",
    ];
    let cursor = prop_oneof![near.prop_map(String::into_bytes), vec(any::<u8>(), 0..200)];
    called.holds(300, &cursor, |cursor| {
        for path in ["/exports", "/consumers"] {
            for parameter in ["cursor", "limit", "dataset"] {
                let request = called.request(Method::GET, &format!("{path}?{parameter}={}", encoded(&cursor)));
                let answer = called.answer(request)?;
                // What could name a dataset, and names none.
                let unknown = answer.status == 404 && (path, parameter) == ("/exports", "dataset");
                prop_assert!(matches!(answer.status, 200 | 400) || unknown, "{}", answer.status);
            }
        }
        Ok(())
    });
    called.stop();
}

#[test]
fn bytes_that_are_no_request_hold_up_nobody() {
    let called = Called::new();
    let nearly = "(GET|POST|BREW) [ -~]{0,30} HTTP/1.[0-9]\r\n([A-Za-z-]{0,12}:[ -~]{0,20}\r\n){0,4}\r\n[ -~]{0,20}";
    let bytes = prop_oneof![nearly.prop_map(String::into_bytes), vec(any::<u8>(), 0..300)];
    called.holds(200, &bytes, |bytes| {
        let answer = called.runtime.block_on(async {
            let mut stream = TcpStream::connect(called.service.address.trim_start_matches("http://")).await.unwrap();
            // The service may have gone already, and said why.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
            read.map(|_| String::from_utf8_lossy(&answer).into_owned())
        });
        let answer = answer.map_err(|_| TestCaseError::fail("it hangs"))?;
        prop_assert!(!answer.starts_with("HTTP/1.1 5"), "{answer}");
        prop_assert_eq!(called.answer(called.request(Method::GET, "/health/live"))?.status, 200);
        Ok(())
    });
    called.stop();
}
