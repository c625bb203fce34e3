//! The member `after`: the export that a caller loaded last, compared with the lane of its consumer.

use reqwest::Response;
use serde_json::{Value, json};

use crate::acks::id_of;
use crate::harness::{Service, Start, UNKNOWN_JOB, ends, planted, refusal, serving_users};

async fn ask(service: &Service, path: &str, consumer: Option<&str>, key: Option<&str>, body: Value) -> Response {
    let headers = [("X-Consumer-ID", consumer), ("Idempotency-Key", key)];
    let headers: Vec<_> = headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    service.post(path, &headers, &body).await
}

async fn delta(service: &Service, body: Value) -> Response {
    ask(service, "/exports/delta", Some("a"), None, body).await
}

/// Returns the id of the job in an accepting answer.
async fn taken(answer: Response) -> String {
    let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
    assert_eq!(status, 202, "{body}");
    body["jobId"].as_str().unwrap().to_owned()
}

/// Returns the jobs that a refusal names.
async fn out_of_step(answer: Response) -> Vec<Value> {
    let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
    assert_eq!(status.as_u16(), 409, "{body}");
    assert_eq!(body["code"], "out_of_step", "{body}");
    assert_eq!(body["field"], "after", "{body}");
    body["jobs"].as_array().unwrap().clone()
}

fn ids(jobs: &[Value]) -> Vec<&str> {
    jobs.iter().map(|job| job["jobId"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_caller_that_is_elsewhere_than_its_lane_is_refused() {
    let (database, service) = serving_users(5).await;
    let first = service.ended(&taken(delta(&service, json!({ "after": null })).await).await).await;
    assert_eq!((&first["status"], &first["number"]), (&json!("completed"), &json!(1)));
    assert_eq!(out_of_step(delta(&service, json!({ "after": null })).await).await, std::slice::from_ref(&first));

    // `after` is compared with open exports, too.
    let held = database.hold_exports().await;
    let second = taken(delta(&service, json!({ "after": first["jobId"], "afterSha256": first["sha256"] })).await).await;
    let open = out_of_step(delta(&service, json!({ "after": first["jobId"] })).await).await;
    assert_eq!((ids(&open), &open[0]["number"]), (vec![&*second], &Value::Null));
    let full = ask(&service, "/exports/full", Some("a"), None, json!({ "after": UNKNOWN_JOB })).await;
    let third = taken(full).await;
    held.rollback().await.unwrap();
    let (second, third) = (service.ended(&second).await, service.ended(&third).await);
    assert_eq!((&second["number"], &third["number"]), (&json!(2), &json!(3)));
    assert_eq!(
        out_of_step(delta(&service, json!({ "after": first["jobId"] })).await).await,
        [second.clone(), third.clone()]
    );
    // Another path and another type are checked in the same way.
    let other = ask(&service, "/export/a", None, None, json!({ "after": second["jobId"] })).await;
    assert_eq!(out_of_step(other).await, std::slice::from_ref(&third));
    let other =
        ask(&service, "/exports", Some("a"), None, json!({ "exportType": "delta", "after": second["jobId"] })).await;
    assert_eq!(out_of_step(other).await, std::slice::from_ref(&third));
    // A caller without `after` is not refused.
    let fourth = service.export("delta", "a").await.0;

    // The database doesn't know these: other content, an unknown id, an id of another lane, a cancelled job.
    let (theirs, _) = service.export("full", "b").await;
    let held = database.hold_exports().await;
    let cancelled = service.submit("delta", "a").await;
    service.call("POST", &format!("/exports/{cancelled}/cancel"), &[]).await;
    service.becomes(&cancelled, "cancelled").await;
    held.rollback().await.unwrap();
    for body in [
        json!({ "after": fourth["jobId"], "afterSha256": "0".repeat(64) }),
        json!({ "after": UNKNOWN_JOB }),
        json!({ "after": theirs["jobId"] }),
        json!({ "after": cancelled }),
    ] {
        assert_eq!(refusal(delta(&service, body.clone()).await).await, (409, "database_restored".to_owned()), "{body}");
    }
    // A cancelled export is nothing to wait for.
    taken(delta(&service, json!({ "after": fourth["jobId"] })).await).await;
}

#[tokio::test]
async fn what_after_may_say() {
    let (_, service) = serving_users(0).await;
    let sha256 = "0".repeat(64);
    for (body, field) in [
        (json!({ "after": 7 }), "after"),
        (json!({ "after": "" }), "after"),
        (json!({ "after": "last" }), "after"),
        (json!({ "afterSha256": sha256 }), "afterSha256"),
        (json!({ "after": null, "afterSha256": sha256 }), "afterSha256"),
        (json!({ "after": UNKNOWN_JOB, "afterSha256": &sha256[1..] }), "afterSha256"),
        (json!({ "after": UNKNOWN_JOB, "afterSha256": "A".repeat(64) }), "afterSha256"),
    ] {
        let answer = delta(&service, body.clone()).await;
        assert_eq!(answer.status(), 400, "{body}");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!((&problem["code"], &problem["field"]), (&json!("member_invalid"), &json!(field)), "{body}");
    }
    let ad_hoc = ask(&service, "/exports", None, None, json!({ "after": null })).await;
    assert_eq!(refusal(ad_hoc).await, (400, "member_unknown".to_owned()));
}

/// `after` is a part of the request: a key names the request with it, and a retry keeps it.
#[tokio::test]
async fn after_belongs_to_the_request() {
    let (database, service) = serving_users(5).await;
    let (first, _) = service.export("full", "a").await;
    let body = json!({ "after": first["jobId"], "afterSha256": first["sha256"] });
    let asked = async |body: Value| ask(&service, "/exports/delta", Some("a"), Some("k"), body).await;
    let second = taken(asked(body.clone()).await).await;
    service.ended(&second).await;
    // The answer got lost: the lane has gone on since, by just that.
    assert_eq!(taken(asked(body).await).await, second);
    for other in [json!({}), json!({ "after": null }), json!({ "after": first["jobId"] }), json!({ "after": second })] {
        assert_eq!(refusal(asked(other.clone()).await).await, (422, "idempotency_key_reused".to_owned()), "{other}");
    }

    let held = database.hold_exports().await;
    let third = taken(delta(&service, json!({ "after": second })).await).await;
    service.call("POST", &format!("/exports/{third}/cancel"), &[]).await;
    service.becomes(&third, "cancelled").await;
    held.rollback().await.unwrap();
    let retry = async || service.call("POST", &format!("/exports/{third}/retry"), &[]).await;
    let fourth = service.ended(&taken(retry().await).await).await;
    assert_eq!(out_of_step(retry().await).await, [fourth]);
}

/// A job that is committed and has no name yet is worth waiting for.
#[tokio::test]
async fn what_is_not_published_is_waited_for() {
    let (database, service) = serving_users(5).await;
    let (first, _) = service.export("full", "a").await;
    let mut doomed =
        Start::on(&database).sharing_output(&service).with("FAILPOINTS", "worker.committed=kill").service().await;
    service.stop().await;
    doomed.dies_of("delta", "a", &json!({})).await;
    let elsewhere = Start::on(&database).service().await;
    let open = out_of_step(delta(&elsewhere, json!({ "after": first["jobId"] })).await).await;
    assert_eq!((open.len(), &open[0]["status"], &open[0]["number"]), (1, &json!("processing"), &Value::Null));
    // Somebody who has loaded it already, before the database was put back to this moment, waits for it as well.
    assert_eq!(ids(&out_of_step(delta(&elsewhere, json!({ "after": open[0]["jobId"] })).await).await), ids(&open));
    let newer = format!("/exports?consumer=a&dataset=users&after={}", id_of(&open[0]));
    assert_eq!(elsewhere.get(&newer).await["items"], json!([]));
    let heir = Start::on(&database).sharing_output(&doomed).service().await;
    let second = heir.ended(id_of(&open[0])).await;
    taken(delta(&elsewhere, json!({ "after": second["jobId"] })).await).await;
}

#[tokio::test]
async fn what_was_published_since_is_listed_in_its_order() {
    let (_, service) = serving_users(5).await;
    let mut jobs = Vec::new();
    for export_type in ["full", "delta", "delta", "incremental", "full"] {
        jobs.push(service.export(export_type, "a").await.0);
    }
    service.export("full", "b").await;
    let lane = "/exports?consumer=a&dataset=users&after=";
    for limit in [1, 2, 4, 200] {
        let (mut listed, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("{lane}{}&limit={limit}{cursor}", id_of(&jobs[0]));
            let page: Value = service.call("GET", &path, &[]).await.json().await.unwrap();
            listed.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(listed, jobs[1..], "{limit}");
    }
    assert_eq!(service.get(&format!("{lane}{}", id_of(&jobs[4]))).await, json!({ "items": [], "nextCursor": null }));

    service.refuses("GET", &format!("{lane}{UNKNOWN_JOB}"), &[], 409, "database_restored").await;
    let first = id_of(&jobs[0]);
    service.refuses("GET", &format!("/exports?consumer=a&dataset=userz&after={first}"), &[], 404, "no_dataset").await;
    let newest: Value = service.call("GET", "/exports?limit=1", &[]).await.json().await.unwrap();
    for query in [
        format!("after={first}"),
        format!("dataset=users&after={first}"),
        "consumer=a&dataset=users&after=".to_owned(),
        format!("consumer=a&dataset=users&status=completed&after={first}"),
        format!("consumer=a&dataset=users&exportType=delta&after={first}"),
        // This is a cursor of the other list.
        format!("consumer=a&dataset=users&after={first}&cursor={}", newest["nextCursor"].as_str().unwrap()),
        "cursor=number_1".to_owned(),
        format!("consumer=a&dataset=users&after={first}&cursor=number_"),
    ] {
        service.refuses("GET", &format!("/exports?{query}"), &[], 400, "parameter_invalid").await;
    }
}

#[tokio::test]
async fn a_hundred_exports_are_named_and_the_rest_is_asked_for() {
    let (database, service) = serving_users(0).await;
    let (first, _) = service.export("full", "a").await;
    let jobs = planted(
        "select 'a', 'users', n, 'delta', 'completed', now() + n * interval '1 second' from generate_series(2, 131) n",
    );
    database.run(&format!("{jobs} update cdc_export.lanes set last_sequence = 131, last_number = 131")).await;
    let held = database.hold_exports().await;
    let open = service.submit("delta", "a").await;
    let jobs = out_of_step(delta(&service, json!({ "after": first["jobId"] })).await).await;
    let numbers: Vec<_> = jobs[..100].iter().map(|job| job["number"].as_i64().unwrap()).collect();
    assert_eq!((jobs.len(), numbers, ids(&jobs)[100]), (101, (2..=101).collect(), &*open));
    let jobs = out_of_step(delta(&service, json!({ "after": jobs[99]["jobId"] })).await).await;
    assert_eq!((jobs.len(), jobs[29]["number"].as_i64()), (31, Some(131)));
    held.rollback().await.unwrap();
}

/// Retention may forget an export that somebody has yet to load: what is left isn't named as if it were all there was.
#[tokio::test]
async fn what_was_forgotten_in_between_is_not_passed_over() {
    let (database, service) = serving_users(5).await;
    let mut jobs = Vec::new();
    for export_type in ["full", "delta", "delta", "delta"] {
        jobs.push(service.export(export_type, "a").await.0);
    }
    let after = async |job: &Value| refusal(delta(&service, json!({ "after": job["jobId"] })).await).await;
    let listed =
        async |query: &str| service.call("GET", &format!("/exports?consumer=a&dataset=users&{query}"), &[]).await;
    let restored = (409, "database_restored".to_owned());
    let out = (409, "out_of_step".to_owned());
    // In the middle, at the beginning, at the end.
    let forget = async |job: &Value| {
        database.run(&format!("delete from cdc_export.exports where job = '{}'", id_of(job))).await;
    };
    forget(&jobs[1]).await;
    assert_eq!(after(&jobs[0]).await, restored);
    for query in [format!("after={}", id_of(&jobs[0])), format!("after={}&limit=1", id_of(&jobs[0]))] {
        assert_eq!(refusal(listed(&query).await).await, restored, "{query}");
    }
    assert_eq!(after(&jobs[2]).await, out);
    forget(&jobs[0]).await;
    assert_eq!(refusal(delta(&service, json!({ "after": null })).await).await, restored);
    let page: Value = listed(&format!("after={}", id_of(&jobs[2]))).await.json().await.unwrap();
    assert_eq!(page["items"], json!([jobs[3]]));
    forget(&jobs[3]).await;
    assert_eq!(after(&jobs[2]).await, restored);
    assert_eq!(refusal(listed(&format!("after={}", id_of(&jobs[2]))).await).await, restored);
    // A position that somebody set by hand is no export that was handed out.
    database.run("insert into watermarks (consumer_id, last_exported_at) values ('set', '2026-01-01')").await;
    taken(ask(&service, "/exports/incremental", Some("set"), None, json!({ "after": null })).await).await;
}

#[tokio::test]
async fn the_command_line_says_what_was_loaded_last() {
    let (database, service) = serving_users(5).await;
    for place in [vec![], vec!["--server".to_owned(), service.address.clone()]] {
        let consumer = format!("c{}", place.len());
        let export = async |more: &[&str]| {
            let mut arguments = vec!["export", "delta", "--json", "--consumer", &consumer];
            arguments.extend(place.iter().map(String::as_str).chain(more.iter().copied()));
            Start::on(&database).sharing_output(&service).arguments(&arguments).output().await
        };
        let (printed, _) = ends(export(&["--after", "none"]).await, 0, "");
        let job: Value = serde_json::from_str(&printed).unwrap();
        let (_, said) = ends(export(&["--after", "none"]).await, 1, "1 published since, 0 open");
        let fetched =
            format!("cdc-export download {}{}", id_of(&job), if place.is_empty() { "" } else { " --server http" });
        assert!(said.contains(&fetched), "{said}");
        ends(export(&["--after", UNKNOWN_JOB]).await, 1, "full export");
        let sha256 = job["sha256"].as_str().unwrap();
        ends(export(&["--after", id_of(&job), "--after-sha256", sha256]).await, 0, "");
        for bad in [&["--after", "x"][..], &["--after-sha256", sha256], &["--after", "none", "--after-sha256", sha256]]
        {
            assert_eq!(export(bad).await.0, 2, "{bad:?}");
        }
    }
}
