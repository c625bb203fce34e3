//! Keys: who gets in with one, whose exports it opens, and for how long.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::harness::{Database, PROMPT, Service, Start, UNKNOWN_JOB, client_builder, ends, eventually, refusal, until};
use crate::http::accept_connections;
use crate::lost_files::dead_after_a_commit;
use crate::openapi;

/// `cdc-export keys …` on a database: exit code, what it printed, what it said.
async fn keys(database: &Database, arguments: &[&str]) -> (i32, String, String) {
    Start::on(database).arguments(&[&["keys"], arguments].concat()).output().await
}

/// Makes a new key. Returns it as `keys create` shows it.
pub(crate) async fn made(start: Start, name: &str, more: &[&str]) -> Value {
    let arguments = [&["keys", "create", "--json", "--name", name], more].concat();
    let (printed, _) = ends(start.arguments(&arguments).output().await, 0, "");
    serde_json::from_str(&printed).unwrap()
}

async fn create(database: &Database, name: &str, more: &[&str]) -> Value {
    made(Start::on(database), name, more).await
}

/// Returns a key as the value of a header.
pub(crate) fn header_of(key: &Value) -> String {
    format!("Bearer {}", key["key"].as_str().unwrap())
}

/// Makes a new key for these scopes and consumers. Returns it as a header's value.
pub(crate) async fn bearer(database: &Database, name: &str, scopes: &[&str], consumers: &[&str]) -> String {
    let scopes = scopes.iter().flat_map(|scope| ["--scope", scope]);
    let all_datasets = (!consumers.is_empty()).then_some("--all-datasets");
    let consumers = consumers.iter().flat_map(|id| ["--consumer", id]);
    let more: Vec<_> = scopes.chain(consumers).chain(all_datasets).collect();
    header_of(&create(database, name, &more).await)
}

async fn revoke(database: &Database, name: &str) {
    let (code, _, said) = keys(database, &["revoke", name]).await;
    let line: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &line["event"]), (0, &serde_json::json!("key_revoked")));
}

/// Starts a service that wants keys. Its client has a key that may do everything.
pub(crate) async fn service(database: &Database) -> Service {
    served(Start::on(database).with("AUTH", "keys"), database).await
}

pub(crate) async fn served(start: Start, database: &Database) -> Service {
    let name = format!("all {}", uuid::Uuid::new_v4());
    let all = bearer(database, &name, &["admin"], &[]).await;
    let mut service = start.service().await;
    let headers = HeaderMap::from_iter([(reqwest::header::AUTHORIZATION, HeaderValue::from_str(&all).unwrap())]);
    service.client = client_builder().default_headers(headers).build().unwrap();
    service
}

pub(crate) async fn call_as(service: &Service, key: &str, method: &str, path: &str) -> reqwest::Response {
    service.call(method, path, &[("Authorization", key)]).await
}

async fn call_for(service: &Service, key: &str, consumer: &str, method: &str, path: &str) -> reqwest::Response {
    service.call(method, path, &[("Authorization", key), ("X-Consumer-ID", consumer)]).await
}

/// Sends a request with these headers and no others.
async fn call_plainly(service: &Service, method: &str, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = client_builder().build().unwrap().request(method, format!("{}{path}", service.address));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

/// Requires that a call was refused without a good key. Returns the challenge.
async fn challenged(answer: reqwest::Response, code: &str) -> String {
    let challenge = answer.headers()["WWW-Authenticate"].to_str().unwrap().to_owned();
    assert_eq!(answer.headers()["Content-Type"], "application/problem+json");
    assert_eq!(refusal(answer).await, (401, code.to_owned()));
    challenge
}

#[tokio::test]
async fn a_key_is_shown_once_and_only_its_sha256_is_kept() {
    let database = Database::new().await;
    let made =
        create(&database, "search", &["--consumer", "a", "--consumer", "b", "--dataset", "users", "--expires", "90d"])
            .await;
    let key = made["key"].as_str().unwrap();
    let [mark, prefix, secret] = key.split('_').collect::<Vec<_>>()[..] else { panic!("{key}") };
    assert_eq!((mark, prefix.len(), secret.len()), ("cdcx", 12, 64));
    assert_eq!(made["prefix"], json!(prefix));
    assert_eq!(made["name"], "search");
    assert_eq!(made["consumers"], json!(["a", "b"]));
    assert_eq!(made["datasets"], json!(["users"]));
    assert_eq!(made["scopes"], json!(["export:read", "export:write"]));
    let hash: String = database.one("select encode(hash, 'hex') from cdc_export.keys").await;
    assert_eq!(hash, database.one::<String>(&format!("select encode(sha256('{key}'), 'hex')")).await);
    let row: String = database.one("select k::text from cdc_export.keys k").await;
    assert!(row.contains(prefix) && !row.contains(secret), "{row}");

    let (_, json, _) = keys(&database, &["list", "--json"]).await;
    let (_, table, _) = keys(&database, &["list"]).await;
    for listed in [&json, &table] {
        assert!(listed.contains(prefix) && !listed.contains(secret) && !listed.contains(&hash), "{listed}");
    }
    let mut listed = serde_json::from_str::<Value>(&json).unwrap()["keys"][0].clone();
    listed["key"] = key.into();
    assert_eq!(listed, made);
    // For a script, the key alone is on standard output.
    let (_, printed, said) = keys(&database, &["create", "--name", "other"]).await;
    assert!(printed.starts_with("cdcx_") && printed.trim_end().len() == key.len(), "{printed}");
    assert!(said.contains("only time") && !said.contains(printed.trim_end()), "{said}");
}

#[tokio::test]
async fn a_name_is_one_keys_alone_until_it_is_revoked() {
    let database = Database::new().await;
    let first = create(&database, "search", &[]).await;
    let (code, printed, said) = keys(&database, &["create", "--name", "search"]).await;
    assert_eq!((code, printed.as_str(), said.lines().count()), (1, "", 1), "{said}");
    revoke(&database, "search").await;
    let second = create(&database, "search", &[]).await;
    assert_ne!(first["prefix"], second["prefix"]);
    revoke(&database, second["prefix"].as_str().unwrap()).await;
    // After a leak, the key itself may be all that somebody has.
    let third = create(&database, "search", &[]).await;
    revoke(&database, third["key"].as_str().unwrap()).await;

    for gone in ["search", "nobody", third["key"].as_str().unwrap()] {
        let (code, _, said) = keys(&database, &["revoke", gone]).await;
        assert!(code == 1 && said.lines().count() == 1, "{said}");
        assert!(!said.contains(third["key"].as_str().unwrap()), "{said}");
    }
    let (_, listed, _) = keys(&database, &["list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert!(listed["keys"].as_array().unwrap().iter().all(|key| key["status"] == "revoked"), "{listed}");
    for bad in [
        &["create"][..],
        &["create", "--name", ""],
        &["create", "--name", "cdcx_0"],
        &["create", "--name", "x", "--scope", "root"],
        &["create", "--name", "x", "--consumer", "a b"],
        &["create", "--name", "x", "--expires", "0s"],
        &["create", "--name", "x", "--expires", "soon"],
        &["revoke"],
    ] {
        assert_eq!(keys(&database, bad).await.0, 2, "{bad:?}");
    }
}

#[tokio::test]
async fn every_route_but_health_and_the_page_wants_a_key() {
    let database = Database::new().await;
    let service = service(&database).await;
    let mut routes = openapi::paths();
    routes.retain(|(_, path)| {
        !path.starts_with("/health") && !["/openapi.json", "/docs", "/symptoms"].contains(&&**path)
    });
    assert!(routes.len() > 25, "{routes:?}");
    let others = [("GET", "/nowhere"), ("POST", "/nowhere"), ("PATCH", "/exports")];
    routes.extend(others.map(|(method, path)| (method.to_owned(), path.to_owned())));
    for (method, path) in &routes {
        let answer = call_plainly(&service, method, path, &[("X-Consumer-ID", "a")]).await;
        assert!(answer.headers().contains_key("X-Request-Id"));
        assert_eq!(challenged(answer, "key_required").await, "Bearer realm=\"cdc-export\"", "{method} {path}");
    }
    for path in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(call_plainly(&service, "GET", path, &[]).await.status(), 200, "{path}");
    }
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 0);
    // A caller with a key may come from any origin: a web page can't send a key by itself.
    let key = bearer(&database, "reader", &["export:read"], &[]).await;
    let headers = [("Authorization", &*key), ("Host", "example.com"), ("Origin", "https://example.com")];
    assert_eq!(call_plainly(&service, "GET", "/exports", &headers).await.status(), 200);
    assert_eq!(call_as(&service, &key, "HEAD", "/exports").await.status(), 200);
    // An encoded path leads nowhere, rather than past the scope.
    let key = bearer(&database, "writer", &["export:read", "export:write"], &[]).await;
    assert_eq!(call_as(&service, &key, "DELETE", "/%75sers/1").await.status(), 404);
}

#[tokio::test]
async fn only_an_admin_gives_up_an_export_whose_file_has_no_name() {
    let database = Database::new().await;
    // The folder is gone with its host.
    let (_doomed, id, _) = dead_after_a_commit(&database, Start::on(&database), "/exports/full", Some("a")).await;
    let service = service(&database).await;
    database.run("update cdc_export.exports set finished_at = finished_at - interval '1 minute'").await;
    let path = format!("/exports/{id}");
    let write = bearer(&database, "writer", &["export:write", "export:read"], &[]).await;
    let refused =
        service.client.delete(format!("{}{path}", service.address)).header("Authorization", write).send().await;
    assert_eq!(refusal(refused.unwrap()).await, (409, "still_open".to_owned()));
    assert_eq!(service.call("DELETE", &path, &[]).await.status(), 204);
    let job = service.job(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("file_lost")), "{job}");
}

#[tokio::test]
async fn keys_that_are_no_good_are_told_apart_by_nobody() {
    let database = Database::new().await;
    let service = service(&database).await;
    let good = bearer(&database, "good", &[], &[]).await;
    let revoked = bearer(&database, "revoked", &[], &[]).await;
    let expired = bearer(&database, "expired", &[], &[]).await;
    revoke(&database, "revoked").await;
    database.run("update cdc_export.keys set expires_at = clock_timestamp() where name = 'expired'").await;
    let wrong_secret = format!("{}{}", &good[..good.len() - 64], &revoked[revoked.len() - 64..]);
    let unknown = format!("Bearer cdcx_000000000000_{}", &good[good.len() - 64..]);
    assert_eq!(call_as(&service, &good, "GET", "/exports").await.status(), 200);
    let mut answers = Vec::new();
    for bad in [&revoked, &expired, &wrong_secret, &unknown, "Bearer x", "Bearer ", "Bearer cdcx_"] {
        let answer = call_plainly(&service, "GET", "/exports", &[("Authorization", bad)]).await;
        assert_eq!(answer.headers()["WWW-Authenticate"], "Bearer realm=\"cdc-export\", error=\"invalid_token\"");
        assert_eq!(answer.status(), 401);
        answers.push(answer.text().await.unwrap());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(answers[0].contains("\"key_invalid\""), "{answers:?}");

    let twice = [("Authorization", &*good), ("Authorization", &*good)];
    challenged(call_plainly(&service, "GET", "/exports", &twice).await, "key_invalid").await;
    challenged(call_plainly(&service, "GET", "/exports", &[("Authorization", "Basic Og==")]).await, "key_required")
        .await;
}

#[tokio::test]
async fn a_key_in_a_url_opens_nothing() {
    let database = Database::new().await;
    let service = service(&database).await;
    let key = bearer(&database, "x", &[], &[]).await.replace("Bearer ", "");
    for name in ["access_token", "key", "api_key", "token"] {
        let answer = call_plainly(&service, "GET", &format!("/exports?{name}={key}"), &[]).await;
        challenged(answer, "key_required").await;
    }
}

#[test]
fn no_mutated_key_gets_in() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let database = runtime.block_on(Database::new());
    let service = runtime.block_on(service(&database));
    let key = runtime.block_on(bearer(&database, "x", &[], &[])).replace("Bearer ", "");
    let get = |key: &str| {
        let key = format!("Bearer {key}");
        runtime.block_on(call_plainly(&service, "GET", "/exports", &[("Authorization", &key)])).status().as_u16()
    };
    assert_eq!(get(&key), 200);
    let mut runner = TestRunner::new(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() });
    let mutation = (0..key.len(), "[!-~]", 0..4);
    runner
        .run(&mutation, |(at, other, how)| {
            let mut letters: Vec<char> = key.chars().collect();
            let other = other.chars().next().unwrap();
            match how {
                0 => letters[at] = other,
                1 => letters.insert(at, other),
                2 => drop(letters.remove(at)),
                _ => letters[at] = letters[at].to_ascii_uppercase(),
            }
            let mutated: String = letters.into_iter().collect();
            prop_assert_eq!(get(&mutated), if mutated == key { 200 } else { 401 });
            Ok(())
        })
        .unwrap();
    runtime.block_on(service.stop());
}

#[tokio::test]
async fn a_bound_key_is_for_its_consumers_only() {
    let database = Database::new().await;
    let service = service(&database).await;
    let key = bearer(&database, "a", &[], &["a", "team:1"]).await;
    for (consumer, path, is_allowed) in [
        ("a", "/exports/full", true),
        ("team:1", "/export/team:1", true),
        ("A", "/exports/full", false),
        // The path's consumer is the one that the key has to be for, whatever the header says beside it.
        ("a", "/export/b", false),
    ] {
        let answer = call_for(&service, &key, consumer, "POST", path).await;
        match is_allowed {
            true => assert_ne!(answer.status(), 403, "{consumer} {path}"),
            false => assert_eq!(refusal(answer).await, (403, "consumer_not_allowed".to_owned()), "{consumer} {path}"),
        }
    }
    let made: Vec<Option<String>> = database.one("select array_agg(distinct consumer_id) from exports").await;
    assert_eq!(made, [Some("a".to_owned()), Some("team:1".to_owned())]);
}

/// Returns everything that an answer says, except its time and its request's id.
async fn said(answer: reqwest::Response) -> (u16, BTreeMap<String, String>, String) {
    let mut headers = BTreeMap::new();
    for (name, value) in answer.headers() {
        headers.insert(name.to_string(), value.to_str().unwrap().to_owned());
    }
    headers.retain(|name, _| !["date", "x-request-id"].contains(&name.as_str()));
    (answer.status().as_u16(), headers, answer.text().await.unwrap())
}

#[tokio::test]
async fn anothers_job_answers_as_one_that_does_not_exist() {
    let database = Database::with_users(5).await;
    let service = service(&database).await;
    let (of_b, _) = service.export("full", "b").await;
    let ad_hoc: Value = service.call("POST", "/exports", &[]).await.json().await.unwrap();
    let (of_a, _) = service.export("full", "a").await;
    let [of_a, of_b, ad_hoc] = [&of_a, &of_b, &ad_hoc].map(|job| job["jobId"].as_str().unwrap());
    service.ended(ad_hoc).await;
    let key = bearer(&database, "a", &[], &["a"]).await;
    for (method, path) in [
        ("GET", "/exports/{id}"),
        ("GET", "/exports/{id}?wait=1"),
        ("GET", "/exports/{id}?wait=x"),
        ("GET", "/exports/{id}/events"),
        ("GET", "/exports/{id}/download"),
        ("GET", "/exports/{id}/download?dataset=users"),
        ("HEAD", "/exports/{id}/download"),
        ("POST", "/exports/{id}/ack"),
        ("POST", "/exports/{id}/cancel"),
        ("POST", "/exports/{id}/retry"),
        ("DELETE", "/exports/{id}"),
        ("PATCH", "/exports/{id}"),
    ] {
        // A header that is bad anyhow must not make a difference either.
        for more in [("Idempotency-Key", "k"), ("Idempotency-Key", ""), ("Range", "bytes=9999-")] {
            let ask = async |id: &str| {
                let headers = [("Authorization", &*key), more];
                said(service.call(method, &path.replace("{id}", id), &headers).await).await
            };
            let nobodys = ask(UNKNOWN_JOB).await;
            let expected = match path.rsplit('/').next() {
                _ if method == "PATCH" => 405,
                Some("{id}?wait=x") => 400,
                Some("retry") if more.1.is_empty() => 400,
                _ => 404,
            };
            assert_eq!(nobodys.0, expected, "{method} {path}");
            assert_eq!(ask(of_b).await, nobodys, "{method} {path}");
            assert_eq!(ask(ad_hoc).await, nobodys, "{method} {path}");
        }
        if method != "DELETE" {
            let own = call_as(&service, &key, method, &path.replace("{id}", of_a)).await;
            assert_ne!(own.status(), 404, "{method} {path}");
        }
    }
    assert_eq!(service.call("GET", &format!("/exports/{of_b}/download"), &[]).await.status(), 200, "it is still there");
}

#[tokio::test]
async fn lists_show_a_bound_key_its_own_consumers_page_by_page() {
    let database = Database::new().await;
    let service = service(&database).await;
    for n in 0..3 {
        for consumer in ["a", "b", "c", "d"] {
            service.submit(["full", "delta", "incremental"][n], consumer).await;
        }
        assert_eq!(service.call("POST", "/exports", &[]).await.status(), 202);
    }
    let key = bearer(&database, "x", &[], &["b", "d", "nobody"]).await;
    for limit in [1, 2, 5, 200] {
        let jobs = service.pages("/exports", &[("Authorization", &key)], limit).await;
        let consumers: Vec<_> = jobs.iter().map(|job| job["consumerId"].as_str().unwrap()).collect();
        assert_eq!(consumers, ["d", "b", "d", "b", "d", "b"], "{limit}");
        assert_eq!(service.pages("/exports?exportType=delta", &[("Authorization", &key)], limit).await.len(), 2);
        let standings = service.pages("/consumers", &[("Authorization", &key)], limit).await;
        let consumers: Vec<_> = standings.iter().map(|standing| standing["consumerId"].as_str().unwrap()).collect();
        assert_eq!(consumers, ["b", "d"], "{limit}");
    }
    for (path, count) in [("/exports?consumer=b", 3), ("/exports?consumer=a", 0), ("/exports?consumer=nobody", 0)] {
        assert_eq!(service.pages(path, &[("Authorization", &key)], 200).await.len(), count, "{path}");
    }
    for (path, count) in [("/consumers?consumer=b", 1), ("/consumers?consumer=a", 0)] {
        assert_eq!(service.pages(path, &[("Authorization", &key)], 200).await.len(), count, "{path}");
    }
    let all = bearer(&database, "all", &[], &[]).await;
    assert_eq!(service.pages("/exports", &[("Authorization", &all)], 200).await.len(), 15);
    assert_eq!(service.pages("/consumers", &[("Authorization", &all)], 200).await.len(), 4);
}

#[tokio::test]
async fn a_revoked_key_is_refused_while_requests_run() {
    let database = Database::new().await;
    let services = [service(&database).await, service(&database).await];
    let key = bearer(&database, "leaked", &[], &[]).await;
    let (good, requests) = (AtomicUsize::new(0), 16);
    let until_refused = (0..requests).map(|n| {
        let (service, key, good) = (&services[n % 2], &key, &good);
        async move {
            eventually("the key is refused", async || {
                let answer = call_as(service, key, "GET", "/exports?limit=1").await;
                match answer.status().as_u16() {
                    200 => {
                        good.fetch_add(1, Ordering::Relaxed);
                        None
                    }
                    status => Some((status, refusal(answer).await.1)),
                }
            })
            .await
        }
    });
    let revoked = async {
        until("requests run", async || good.load(Ordering::Relaxed) > 100).await;
        revoke(&database, "leaked").await;
    };
    let (refusals, ()) = tokio::join!(join_all(until_refused), revoked);
    assert!(refusals.iter().all(|refusal| *refusal == (401, "key_invalid".to_owned())), "{refusals:?}");
    for service in services {
        assert_eq!(call_as(&service, &key, "GET", "/exports").await.status(), 401, "and stays refused");
    }
}

#[tokio::test]
async fn a_revoked_key_ends_what_it_waits_for() {
    let database = Database::new().await;
    let service = service(&database).await;
    let held = database.hold_exports().await;
    let id = service.submit("full", "a").await;
    let key = bearer(&database, "leaked", &[], &[]).await;
    let events = call_as(&service, &key, "GET", &format!("/exports/{id}/events")).await;
    assert_eq!(events.status(), 200);
    let path = format!("/exports/{id}?wait=60");
    let (waited, events, ()) =
        tokio::join!(call_as(&service, &key, "GET", &path), events.text(), revoke(&database, "leaked"));
    assert_eq!(refusal(waited).await, (401, "key_invalid".to_owned()));
    let events = events.expect("the stream ends in order");
    assert!(events.starts_with("event: job\n") && !events.contains("event: completed"), "{events}");
    held.rollback().await.unwrap();
    assert_eq!(service.ended(&id).await["status"], "completed");
}

#[tokio::test]
async fn a_revoked_key_breaks_its_download_off() {
    let database = Database::new().await;
    // More than the sockets take while nobody reads.
    let changes = "insert into users (name, email, created_at, updated_at)
                   select repeat('x', 250), n || repeat('y', 200), now(), now() from generate_series(1, 80000) n";
    database.run(changes).await;
    let service = service(&database).await;
    let (job, _) = service.export("full", "a").await;
    let key = bearer(&database, "leaked", &[], &[]).await;
    let path = format!("/exports/{}/download", job["jobId"].as_str().unwrap());
    let mut download = call_as(&service, &key, "GET", &path).await;
    assert_eq!(download.status(), 200);
    revoke(&database, "leaked").await;
    let refused = async || (call_as(&service, &key, "GET", "/exports").await.status() == 401).then_some(());
    eventually("the key is refused", refused).await;
    // Soon after; whoever read meanwhile could come to the file's end.
    let broken_off = async || service.events("answer_broken_off").pop();
    let event = eventually("the download is broken off", broken_off).await;
    assert!(key.contains(&format!("cdcx_{}_", event["span"]["key"].as_str().unwrap())), "{event}");
    let mut got = 0;
    let why = loop {
        match download.chunk().await {
            Ok(Some(chunk)) => got += chunk.len(),
            Ok(None) => panic!("all {got} bytes came"),
            Err(why) => break why,
        }
    };
    assert!((got as u64) < job["bytesWritten"].as_u64().unwrap(), "{got}: {why}");
    assert_eq!(service.call("GET", &path, &[]).await.bytes().await.unwrap().len() as u64, job["bytesWritten"]);
}

#[tokio::test]
async fn a_key_ends_with_its_time() {
    let database = Database::new().await;
    let service = service(&database).await;
    let key = header_of(&create(&database, "short", &["--expires", "3s"]).await);
    let refused = eventually("it is refused", async || {
        let answer = call_as(&service, &key, "GET", "/exports").await;
        if answer.status() == 200 { None } else { Some(refusal(answer).await) }
    });
    assert_eq!(refused.await, (401, "key_invalid".to_owned()));
    let past = "select expires_at <= clock_timestamp() from cdc_export.keys where name = 'short'";
    assert!(database.one::<bool>(past).await, "not before");
    let (_, listed, _) = keys(&database, &["list"]).await;
    assert!(listed.lines().any(|line| line.contains("short") && line.contains("expired")), "{listed}");
}

#[tokio::test]
async fn a_keys_use_is_noted_about_once_a_minute() {
    let database = Database::new().await;
    let service = service(&database).await;
    let key = bearer(&database, "used", &[], &[]).await;
    let used = "select last_used_at::text from cdc_export.keys where name = 'used'";
    assert_eq!(database.one::<Option<String>>(used).await, None);
    assert_eq!(call_as(&service, &key, "GET", "/exports").await.status(), 200);
    let noted: Option<String> = database.one(used).await;
    assert!(noted.is_some());
    let again = Start::on(&database).with("AUTH", "keys").service().await;
    assert_eq!(call_as(&again, &key, "GET", "/exports").await.status(), 200);
    assert_eq!(database.one::<Option<String>>(used).await, noted);
}

#[tokio::test]
async fn without_its_database_nobody_gets_in() {
    let database = Database::new().await;
    let service = served(Start::on(&database).with("AUTH", "keys").with("FAILPOINTS", PROMPT), &database).await;
    let key = bearer(&database, "x", &[], &[]).await;
    assert_eq!(call_as(&service, &key, "GET", "/datasets").await.status(), 200);
    let admin = PgPool::connect_with(database.options.clone().database("postgres")).await.unwrap();
    accept_connections(&admin, &database, false).await;
    // A path that needs no database itself: the key is looked up all the same.
    let nowhere = async |key: &str| call_as(&service, key, "GET", "/nowhere").await;
    until("what was known of the key is old", async || nowhere(&key).await.status() == 503).await;
    for key in [&key, &format!("Bearer cdcx_000000000000_{}", "0".repeat(64))] {
        let answer = nowhere(key).await;
        assert!(answer.headers().contains_key("Retry-After"));
        assert_eq!(refusal(answer).await, (503, "database_unavailable".to_owned()));
    }
    challenged(call_plainly(&service, "GET", "/nowhere", &[]).await, "key_required").await;
    assert_eq!(call_plainly(&service, "GET", "/health/live", &[]).await.status(), 200);

    accept_connections(&admin, &database, true).await;
    until("the key is good again", async || nowhere(&key).await.status() == 404).await;
}

/// Requires that a call was refused because there were too many. Returns the seconds until the next one may come.
async fn limited(answer: reqwest::Response) -> u64 {
    let wait = answer.headers()["Retry-After"].to_str().unwrap().parse().unwrap();
    assert_eq!(answer.headers()["Content-Type"], "application/problem+json");
    assert_eq!(refusal(answer).await, (429, "rate_limited".to_owned()));
    wait
}

#[tokio::test]
async fn a_key_has_a_rate_of_its_own() {
    let database = Database::new().await;
    let service = Start::on(&database).with("AUTH", "keys").with("RATE_LIMIT", "6/h").service().await;
    assert_eq!(service.events("no_keys").len(), 1, "nobody could call, until there is a key");
    let [one, other] = [bearer(&database, "one", &[], &[]).await, bearer(&database, "other", &[], &[]).await];
    for _ in 0..6 {
        assert_eq!(call_as(&service, &one, "GET", "/exports").await.status(), 200);
    }
    let wait = limited(call_as(&service, &one, "GET", "/exports").await).await;
    assert!((500..=600).contains(&wait), "a sixth of an hour: {wait}");
    limited(call_as(&service, &one, "GET", "/nowhere").await).await;
    assert_eq!(call_as(&service, &other, "GET", "/exports").await.status(), 200);
    // Guessing is paid for by the address, and keys that were good don't suffer from it.
    let guess = format!("Bearer cdcx_000000000000_{}", "0".repeat(64));
    eventually("guesses are limited", async || {
        let answer = call_as(&service, &guess, "GET", "/exports").await;
        if answer.status() == 401 { None } else { Some(limited(answer).await) }
    })
    .await;
    limited(call_plainly(&service, "GET", "/exports", &[]).await).await;
    assert_eq!(call_as(&service, &other, "GET", "/exports").await.status(), 200);
    // The address pays for calls that need no key. Only health is free.
    for path in ["/", "/page/app.js", "/docs", "/docs/docs.css", "/openapi.json", "/symptoms"] {
        limited(call_plainly(&service, "GET", path, &[]).await).await;
    }
    for path in ["/health", "/health/live", "/health/ready"] {
        for _ in 0..10 {
            assert_eq!(call_plainly(&service, "GET", path, &[]).await.status(), 200);
        }
    }
}

#[tokio::test]
async fn guesses_lock_out_no_key_of_their_address_after_a_start() {
    let database = Database::new().await;
    let key = bearer(&database, "partner", &[], &[]).await;
    let service = Start::on(&database).with("AUTH", "keys").with("RATE_LIMIT", "6/h").service().await;
    let guess = format!("Bearer cdcx_000000000000_{}", "0".repeat(64));
    until("guesses are limited", async || call_as(&service, &guess, "GET", "/exports").await.status() == 429).await;
    assert_eq!(call_as(&service, &key, "GET", "/exports").await.status(), 200, "its first use since the start");
    let later = bearer(&database, "later", &[], &[]).await;
    until("a key made since", async || call_as(&service, &later, "GET", "/exports").await.status() == 200).await;
}

#[tokio::test]
async fn without_keys_an_address_has_the_rate() {
    let database = Database::new().await;
    let service = Start::on(&database).with("RATE_LIMIT", "3/h").service().await;
    for _ in 0..3 {
        assert_eq!(service.call("GET", "/exports", &[]).await.status(), 200);
    }
    limited(service.call("GET", "/exports", &[]).await).await;
    // A key means nothing here.
    limited(call_as(&service, "Bearer x", "GET", "/exports").await).await;
    assert_eq!(service.call("GET", "/health", &[]).await.status(), 200);
}

#[tokio::test]
async fn a_key_is_in_no_log_and_no_answer() {
    let database = Database::new().await;
    let service = served(Start::on(&database).with("AUTH", "keys").with("LOG_LEVEL", "trace"), &database).await;
    let key = bearer(&database, "x", &[], &[]).await;
    let secret = key.rsplit('_').next().unwrap();
    let wrong = format!("{}0", &key[..key.len() - 1]);
    let mut answers = String::new();
    // The last fails inside, and is logged.
    database.run("alter view cdc_export.watermarks rename column last_exported_at to gone").await;
    for (key, path) in
        [(&key, "/exports"), (&wrong, "/exports"), (&format!("{key}x"), "/nowhere"), (&key, "/exports/watermark")]
    {
        answers += &call_for(&service, key, "a", "GET", path).await.text().await.unwrap();
    }
    let prefix = &key["Bearer cdcx_".len()..][..12];
    let line = eventually("the failure is logged", async || service.events("request_failed").pop()).await;
    assert_eq!(line["span"]["key"], prefix, "which key it was, by its public part");
    service.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("all is written", async || service.events("stopped").pop()).await;
    for text in [service.log(), answers] {
        assert!(!text.contains(&secret[..16]), "{text}");
    }
    assert!(!service.log().contains("cdcx_"), "{}", service.log());
}

#[tokio::test]
async fn beyond_loopback_keys_are_wanted_once_there_is_one() {
    let database = Database::empty().await;
    let start = || Start::on(&database).with("HOST", "0.0.0.0");
    let (code, said) = start().until_it_ends().await;
    assert!(code == 2 && said.contains("keys create") && said.contains("AUTH=none"), "{code} {said}");
    let key = bearer(&database, "first", &[], &[]).await;
    let mut service = start().service().await;
    service.address = service.address.replace("0.0.0.0", "127.0.0.1");
    challenged(call_plainly(&service, "GET", "/exports", &[]).await, "key_required").await;
    assert_eq!(call_as(&service, &key, "GET", "/exports").await.status(), 200);
    service.stop().await;

    // On this machine alone nobody is asked for a key that he may have, unless AUTH says so.
    let service = Start::on(&database).service().await;
    assert_eq!(service.call("GET", "/exports", &[]).await.status(), 200);
    service.stop().await;
    let service = start().with("AUTH", "none").service().await;
    let open = service.address.replace("0.0.0.0", "127.0.0.1");
    assert_eq!(reqwest::get(format!("{open}/exports")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_key_limits_its_caller_also_where_nobody_needs_one() {
    let database = Database::new().await;
    let arguments = ["create", "--json", "--name", "acme", "--dataset", "orders"];
    let (printed, _) = ends(keys(&database, &arguments).await, 0, "AUTH=keys");
    let strict = Start::on(&database).with("AUTH", "keys").arguments(&["keys", "create", "--name", "other"]);
    let (_, said) = ends(strict.output().await, 0, "only time");
    assert!(!said.contains("AUTH"), "{said}");
    let key: Value = serde_json::from_str(&printed).unwrap();
    let acme = header_of(&key);
    for auth in ["local", "none"] {
        let service = Start::on(&database).with("AUTH", auth).service().await;
        let call = async |key: &str, method: &str, path: &str| {
            let answer = call_as(&service, key, method, path).await;
            refusal(answer).await
        };
        assert_eq!(call(&acme, "GET", "/datasets/users").await, (403, "dataset_not_allowed".to_owned()), "{auth}");
        assert_eq!(call(&acme, "DELETE", "/users/1").await, (403, "scope_missing".to_owned()), "{auth}");
        for bad in ["Bearer cdcx_0", "bearer  cdcx_000000000000_0"] {
            assert_eq!(call(bad, "GET", "/exports").await, (401, "key_invalid".to_owned()), "{auth}");
        }
        assert_eq!(call_as(&service, &acme, "GET", "/health").await.status(), 200, "{auth}");
        // A proxy's own authorization is none of ours.
        for other in ["Basic dXNlcjpwYXNz", "Bearer eyJhbGciOiJub25lIn0.e30."] {
            assert_eq!(call_as(&service, other, "GET", "/datasets/users").await.status(), 200, "{auth} {other}");
        }
        service.stop().await;
    }
}

/// Sent under the wrong name, a key would be in the log, in file names and in what other keys see.
#[tokio::test]
async fn a_key_is_no_consumer_and_no_idempotency_key() {
    let database = Database::new().await;
    let key = bearer(&database, "search", &[], &[]).await;
    let text = key.strip_prefix("Bearer ").unwrap();
    let service = Start::on(&database).with("AUTH", "keys").with("LOG_LEVEL", "debug").service().await;
    for (headers, code) in [
        ([("X-Consumer-ID", text), ("Idempotency-Key", "k")], "consumer_invalid"),
        ([("X-Consumer-ID", "a"), ("Idempotency-Key", text)], "idempotency_key_invalid"),
    ] {
        let headers = [&[("Authorization", &*key)], &headers[..]].concat();
        service.refuses("POST", "/exports/full", &headers, 400, code).await;
    }
    assert!(!service.log().contains(text));
}
