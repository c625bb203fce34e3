//! The audit lines of the log: one for each change, each download and each refusal of a valid key.

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended};
use crate::harness::{Database, Service, Start, eventually, refusal, until};
use crate::keys::{bearer, service};

/// Returns the prefix of the key in a header.
fn prefix(bearer: &str) -> String {
    bearer.split('_').nth(1).unwrap().to_owned()
}

/// Returns a line of the log: action, consumer, dataset, job and outcome.
fn entry(line: &Value) -> Value {
    ["action", "consumer", "dataset", "jobId", "outcome"].iter().map(|field| line[field].clone()).collect()
}

/// Waits for this number of lines with this key, and returns them.
async fn lines(service: &Service, key: &str, count: usize) -> Vec<Value> {
    eventually("the log has them", async || {
        let mut lines = service.events("audit");
        lines.retain(|line| line["key"] == key);
        assert!(lines.len() <= count, "{lines:?}");
        (lines.len() == count).then_some(lines)
    })
    .await
}

#[tokio::test]
async fn each_change_and_each_download_has_a_line() {
    let database = Database::with_users(3).await;
    let service = service(&database).await;
    let key = bearer(&database, "search", &[], &["a"]).await;
    let call = async |method: &str, path: &str, more: &[(&str, &str)]| {
        let headers = [&[("Authorization", &*key), ("X-Consumer-ID", "a"), ("X-Request-Id", "r-7")], more].concat();
        service.call(method, path, &headers).await
    };
    let made: Value = call("POST", "/exports/full", &[]).await.json().await.unwrap();
    let id = made["jobId"].as_str().unwrap();
    let job = service.ended(id).await;
    let (file, etag) = (format!("/exports/{id}/download"), format!("\"{}\"", job["sha256"].as_str().unwrap()));
    for (method, more, status) in [
        ("GET", &[][..], 200),
        ("GET", &[("Range", "bytes=0-3")], 206),
        // These send no byte of the file.
        ("HEAD", &[], 200),
        ("GET", &[("If-None-Match", etag.as_str())], 304),
        ("GET", &[("Range", "bytes=99999-")], 416),
    ] {
        assert_eq!(call(method, &file, more).await.status(), status);
    }
    assert_eq!(call("GET", &format!("/exports/{id}/files/1/download"), &[]).await.status(), 200);
    assert_eq!(call("POST", &format!("/exports/{id}/ack"), &[]).await.status(), 200);
    // The second acknowledgement changes nothing.
    assert_eq!(call("POST", &format!("/exports/{id}/ack"), &[]).await.status(), 200);
    let held = database.hold_exports().await;
    let open: Value = call("POST", "/exports/delta", &[]).await.json().await.unwrap();
    let open = open["jobId"].as_str().unwrap();
    assert_eq!(call("POST", &format!("/exports/{open}/cancel"), &[]).await.status(), 202);
    held.rollback().await.unwrap();
    service.ended(open).await;
    let again: Value = call("POST", &format!("/exports/{open}/retry"), &[]).await.json().await.unwrap();
    service.ended(again["jobId"].as_str().unwrap()).await;
    assert_eq!(call("DELETE", "/exports/watermark", &[]).await.status(), 204);
    assert_eq!(call("DELETE", &format!("/exports/{id}"), &[]).await.status(), 204);
    let done = |action: &str, job: Value| json!([action, "a", "users", job, "done"]);
    let expected = [
        done("export", json!(id)),
        done("download", json!(id)),
        done("download", json!(id)),
        done("download", json!(id)),
        done("ack", json!(id)),
        done("export", json!(open)),
        done("cancel", json!(open)),
        done("retry", again["jobId"].clone()),
        done("delete_watermark", Value::Null),
        done("remove_file", json!(id)),
    ];
    let lines = lines(&service, &prefix(&key), expected.len()).await;
    assert_eq!(lines.iter().map(entry).collect::<Vec<_>>(), expected);
    let ack = lines.iter().find(|line| line["action"] == "ack").unwrap();
    assert_eq!(ack["requestId"], "r-7");
}

#[tokio::test]
async fn each_refusal_of_a_valid_key_has_a_line() {
    let database = Database::with_users(3).await;
    let service = service(&database).await;
    let key = bearer(&database, "search", &[], &["a"]).await;
    let call = async |method: &str, path: &str, more: &[(&str, &str)]| {
        let answer = service.call(method, path, &[&[("Authorization", &*key)], more].concat()).await;
        refusal(answer).await
    };
    let (job, _) = service.export("full", "a").await;
    let id = job["jobId"].as_str().unwrap();
    let refused = call("POST", "/exports/full", &[("X-Consumer-ID", "b")]).await;
    assert_eq!(refused, (403, "consumer_not_allowed".to_owned()));
    assert_eq!(call("DELETE", "/users/1", &[]).await, (403, "scope_missing".to_owned()));
    assert_eq!(call("POST", &format!("/exports/{id}/cancel"), &[]).await, (409, "already_ended".to_owned()));
    let named = [("X-Consumer-ID", "a"), ("Idempotency-Key", "k")];
    let first = [&[("Authorization", &*key)], &named[..]].concat();
    let first: Value = service.call("POST", "/exports/full", &first).await.json().await.unwrap();
    service.ended(first["jobId"].as_str().unwrap()).await;
    assert_eq!(call("POST", "/exports/delta", &named).await, (422, "idempotency_key_reused".to_owned()));
    // These are no refusals of a valid key.
    assert_eq!(call("GET", "/exports/00000000-0000-0000-0000-000000000000", &[]).await.0, 404);
    assert_eq!(service.call("GET", "/exports", &[("Authorization", "Bearer x")]).await.status(), 401);
    let expected = [
        json!(["export", "b", null, null, "consumer_not_allowed"]),
        json!(["delete_user", null, null, null, "scope_missing"]),
        json!(["cancel", "a", "users", id, "already_ended"]),
        json!(["export", "a", "users", first["jobId"], "done"]),
        json!(["export", "a", "users", null, "idempotency_key_reused"]),
    ];
    let lines = lines(&service, &prefix(&key), expected.len()).await;
    assert_eq!(lines.iter().map(entry).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_change_whose_client_goes_away_is_done_and_has_its_line() {
    let database = Database::with_users(3).await;
    let service = service(&database).await;
    let (job, _) = service.export("full", "a").await;
    let id = job["jobId"].as_str().unwrap();
    let held = database.open(&format!("select from cdc_export.exports where job = '{id}' for update")).await;
    let path = format!("/exports/{id}");
    let removal = service.call("DELETE", &path, &[]);
    let is_removed = eventually("the file is removed", async || service.files().is_empty().then_some(()));
    tokio::select! {
        answer = removal => panic!("{answer:?}"),
        () = is_removed => {}
    }
    let is_logged = || service.events("audit").iter().any(|line| line["action"] == "remove_file");
    assert!(!is_logged(), "the change is not committed");
    held.rollback().await.unwrap();
    let done = "select file_removed_at is not null from exports";
    until("the call is done", async || database.one::<bool>(done).await).await;
    until("the log has it", async || is_logged()).await;
}

#[tokio::test]
async fn schedules_and_commands_have_names_instead_of_keys() {
    let database = Database::with_users(3).await;
    let catalog = Catalog::of(
        "[[dataset]]\nname = \"users\"\ntable = \"users\"\n\
         [[schedule]]\nname = \"nightly\"\nconsumer = \"a\"\ndataset = \"users\"\ntype = \"full\"\nevery = \"1d\"\n",
    );
    let service = catalog.start(&database).service().await;
    let [scheduled] = lines(&service, "schedule:nightly", 1).await.try_into().unwrap();
    let id = service.events("export_submitted")[0]["jobId"].clone();
    assert_eq!(entry(&scheduled), json!(["export", "a", "users", id, "done"]));
    // A call that needs no key.
    let called = ended(&service, "/exports/full", Some("b"), json!({})).await;
    let is_call = |line: &Value| line["consumer"] == "b" && line.get("key").is_none();
    let find = async || service.events("audit").into_iter().find(is_call);
    let call = eventually("the call is in the log", find).await;
    assert_eq!(entry(&call), json!(["export", "b", "users", called["jobId"], "done"]));
}

#[tokio::test]
async fn the_lines_are_written_at_every_level() {
    let database = Database::with_users(3).await;
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().unwrap().name;
    for level in ["info", "error", "off"] {
        let export = ["export", "full", "--consumer", level, "--json"];
        let (code, job, errors) = Start::on(&database).with("LOG_LEVEL", level).arguments(&export).output().await;
        assert_eq!(code, 0, "{errors}");
        let job: Value = serde_json::from_str(&job).unwrap();
        let line: Value = serde_json::from_str(errors.trim_end()).unwrap();
        assert_eq!((&line["event"], &line["key"]), (&json!("audit"), &json!(format!("cli:{user}"))));
        assert_eq!(entry(&line), json!(["export", level, "users", job["jobId"], "done"]));
    }
}
