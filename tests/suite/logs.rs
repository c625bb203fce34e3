//! The log answers who did what: each event names the job, whose it is and the request that asked for it.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::catalog::{Catalog, ended};
use crate::harness::{Database, Service, Start, eventually, serving_users};

/// The line of an event that a request of this id wrote.
async fn line(service: &Service, event: &str, request: &str) -> Value {
    let of_request = || service.events(event).into_iter().find(|line| line["span"]["requestId"] == request);
    eventually(&format!("{event} of {request}"), async || of_request()).await
}

/// A call with a body, under this id.
async fn send(service: &Service, method: &str, path: &str, request: &str, body: Value) -> (u16, Value) {
    let call = service.client.request(method.parse().unwrap(), format!("{}{path}", service.address));
    let call = call.header("X-Request-Id", request).header("X-Consumer-ID", "search").json(&body);
    let answer = call.send().await.unwrap();
    assert_eq!(answer.headers()["X-Request-Id"], request);
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

fn require_whose(line: &Value, job: &str, export_type: &str) {
    for (field, value) in [("jobId", job), ("consumerId", "search"), ("dataset", "users"), ("exportType", export_type)]
    {
        assert_eq!(line[field], value, "{field}: {line}");
    }
}

/// Postgres's message for a value that a filter can't read quotes the value.
#[tokio::test]
async fn no_line_has_a_value_that_a_filter_could_not_read() {
    let values = "create table t (id int primary key, code text); insert into t values (1, '7'), (2, 'PLANTED 078-05')";
    let database = Database::empty_with(values).await;
    let text = "[[dataset]]\nname = \"t\"\ntable = \"t\"\nfilter = \"code::integer operator(pg_catalog.>) 0\"\n";
    let catalog = Catalog::of(text);
    catalog.track(&database, "t").await;
    let service = catalog.start(&database).with("LOG_LEVEL", "debug").service().await;
    let job = ended(&service, "/exports/full", Some("a"), json!({ "dataset": "t" })).await;
    assert_eq!(job["status"], "failed", "{job}");
    assert!(job["error"]["detail"].as_str().unwrap().contains("22P02"), "{job}");
    let line = service.says("filter_fails", job["jobId"].as_str().unwrap()).await;
    assert!(line["error"].as_str().unwrap().contains("22P02"), "{line}");
    assert!(!service.log().contains("PLANTED"), "{}", service.log());
}

/// A view may raise a warning for each row, and its text may quote a value.
#[tokio::test]
async fn no_line_has_a_warning_that_a_view_raises() {
    let schema = "create table t (id int primary key);
                  insert into t select generate_series(1, 300);
                  create function warning(n int) returns int language plpgsql as
                    'begin raise warning ''PLANTED %'', n; return n; end';
                  create view v as select warning(id) as id from t";
    let database = Database::empty_with(schema).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"v\"\ntable = \"v\"\ncapture = \"none\"\n");
    let service = catalog.start(&database).service().await;
    let job = ended(&service, "/exports/full", Some("a"), json!({ "dataset": "v" })).await;
    assert_eq!((&job["status"], &job["rowsExported"]), (&json!("completed"), &json!(300)), "{job}");
    let log = service.log();
    assert!(!log.contains("PLANTED"), "{}", log.lines().find(|line| line.contains("PLANTED")).unwrap());
}

#[tokio::test]
async fn each_event_says_whose_export_it_is_and_which_request_asked() {
    let (database, service) = serving_users(5).await;
    let (_, answer) = send(&service, "POST", "/exports/full", "r-full", json!({})).await;
    let full = answer["jobId"].as_str().unwrap();
    service.ended(full).await;
    require_whose(&line(&service, "export_submitted", "r-full").await, full, "full");
    require_whose(&service.says("export_started", full).await, full, "full");
    require_whose(&service.says("export_completed", full).await, full, "full");

    let (status, _) = send(&service, "POST", &format!("/exports/{full}/ack"), "r-ack", json!({})).await;
    assert_eq!(status, 200);
    let acknowledged = line(&service, "export_acknowledged", "r-ack").await;
    require_whose(&acknowledged, full, "full");
    assert_eq!(acknowledged["number"], 1, "{acknowledged}");

    send(&service, "DELETE", &format!("/exports/{full}"), "r-delete", json!({})).await;
    let removed = line(&service, "file_removed", "r-delete").await;
    require_whose(&removed, full, "full");
    assert_eq!(removed["file"], answer["outputFilename"]);

    let held = database.hold_exports().await;
    let (_, answer) = send(&service, "POST", "/exports/delta", "r-delta", json!({})).await;
    let delta = answer["jobId"].as_str().unwrap();
    service.becomes(delta, "processing").await;
    let (status, _) = send(&service, "POST", &format!("/exports/{delta}/cancel"), "r-cancel", json!({})).await;
    assert_eq!(status, 202);
    require_whose(&line(&service, "cancel_requested", "r-cancel").await, delta, "delta");
    require_whose(&service.says("export_cancelled", delta).await, delta, "delta");
    held.rollback().await.unwrap();
    let (_, answer) = send(&service, "POST", &format!("/exports/{delta}/retry"), "r-retry", json!({})).await;
    let retried = answer["jobId"].as_str().unwrap();
    let submitted = line(&service, "export_submitted", "r-retry").await;
    require_whose(&submitted, retried, "delta");
    assert_eq!(submitted["retryOf"], delta);
    service.ended(retried).await;

    send(&service, "DELETE", "/exports/watermark", "r-forget", json!({})).await;
    let deleted = line(&service, "watermark_deleted", "r-forget").await;
    assert_eq!((&deleted["consumerId"], &deleted["dataset"]), (&json!("search"), &json!("users")), "{deleted}");

    let mut held = database.hold_exports().await;
    let (_, answer) = send(&service, "POST", "/exports/full", "r-fails", json!({})).await;
    let failed = answer["jobId"].as_str().unwrap();
    sqlx::query("alter table users rename to away").execute(&mut *held).await.unwrap();
    held.commit().await.unwrap();
    service.ended(failed).await;
    let failure = service.says("export_failed", failed).await;
    require_whose(&failure, failed, "full");
    assert_eq!(failure["code"], "table_missing", "{failure}");
    assert!(service.events("request").is_empty(), "requests are told at debug alone");
}

#[tokio::test]
async fn each_request_is_told_at_debug_with_the_id_of_its_answer() {
    let database = Database::new().await;
    let (_, created, _) =
        Start::on(&database).arguments(&["keys", "create", "--name", "loader", "--json"]).output().await;
    let created: Value = serde_json::from_str(&created).unwrap();
    let service = Start::on(&database).with("AUTH", "keys").with("LOG_LEVEL", "debug").service().await;
    let key = format!("Bearer {}", created["key"].as_str().unwrap());
    for (method, path, key, route, status) in [
        ("GET", "/exports/00000000-0000-0000-0000-000000000000", Some(&key), json!("/exports/{jobId}"), 404),
        ("POST", "/exports/full", Some(&key), json!("/exports/full"), 400),
        ("GET", "/exports?colour=red", Some(&key), json!("/exports"), 400),
        ("GET", "/exports", None, json!("/exports"), 401),
        ("GET", "/a-secret-in-a-path", Some(&key), Value::Null, 404),
    ] {
        let headers: Vec<_> = key.iter().map(|key| ("Authorization", key.as_str())).collect();
        let answer = service.call(method, path, &headers).await;
        assert_eq!(answer.status(), status, "{path}");
        let told = line(&service, "request", answer.headers()["X-Request-Id"].to_str().unwrap()).await;
        assert_eq!(told["method"], json!(method), "{told}");
        assert_eq!(told["route"], route, "{told}");
        assert_eq!(told["status"], json!(status), "{told}");
        assert!(told["milliseconds"].as_f64().is_some_and(|time| time > 0.0), "{told}");
        assert_eq!(told["span"]["key"], key.map_or(Value::Null, |_| created["prefix"].clone()), "{told}");
    }
    service.signal(Signal::SIGTERM);
    eventually("all is written", async || service.events("stopped").pop()).await;
    assert!(!service.log().contains("a-secret") && !service.log().contains("cdcx_"), "{}", service.log());
}

#[tokio::test]
async fn who_may_call_is_told_by_the_commands_that_change_it() {
    let database = Database::new().await;
    let told =
        |errors: &str| -> Vec<Value> { errors.lines().filter_map(|line| serde_json::from_str(line).ok()).collect() };
    let arguments = ["keys", "create", "--name", "loader", "--consumer", "search", "--dataset", "users", "--json"];
    let (_, created, errors) = Start::on(&database).arguments(&arguments).output().await;
    let created: Value = serde_json::from_str(&created).unwrap();
    let [line] = &told(&errors)[..] else { panic!("{errors}") };
    let found = (&line["event"], &line["name"], &line["key"], &line["consumers"], &line["datasets"], &line["scopes"]);
    let scopes = json!("export:read export:write");
    assert_eq!(
        found,
        (&json!("key_created"), &json!("loader"), &created["prefix"], &json!("search"), &json!("users"), &scopes)
    );
    assert!(!errors.contains(created["key"].as_str().unwrap()), "{errors}");
    let (_, _, errors) = Start::on(&database).arguments(&["keys", "revoke", "loader"]).output().await;
    let [line] = &told(&errors)[..] else { panic!("{errors}") };
    assert_eq!((&line["event"], &line["key"]), (&json!("key_revoked"), &created["prefix"]));
    // A process that logs less logs less of this too.
    let quiet = Start::on(&database).with("LOG_LEVEL", "error").arguments(&["keys", "create", "--name", "again"]);
    let (_, _, errors) = quiet.output().await;
    assert!(told(&errors).is_empty(), "{errors}");
}
