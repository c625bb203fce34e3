//! Lists of jobs and consumers, a client that waits for an end, and a watermark that is forgotten.

use std::time::Instant;

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export};
use crate::harness::{Database, Service, Start, planted, serving_users};
use crate::http::is_time;

async fn refused(service: &Service, path: &str) -> String {
    let answer = service.call("GET", path, &[]).await;
    assert_eq!(answer.status(), 400, "{path}");
    answer.json::<Value>().await.unwrap()["field"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn jobs_are_listed_newest_first_in_pages() {
    let (database, service) = serving_users(5).await;
    let mut ids = Vec::new();
    for (export_type, consumer) in [("full", "a"), ("delta", "a"), ("full", "b"), ("incremental", "a"), ("delta", "b")]
    {
        let (job, _) = service.export(export_type, consumer).await;
        ids.push(job["jobId"].as_str().unwrap().to_owned());
    }
    ids.reverse();
    for limit in [1, 2, 5, 200] {
        let listed = service.pages("/exports", &[], limit).await;
        assert_eq!(listed.iter().map(|job| job["jobId"].as_str().unwrap()).collect::<Vec<_>>(), ids, "{limit}");
    }
    assert_eq!(service.get(&format!("/exports/{}", ids[0])).await, service.pages("/exports", &[], 1).await[0]);
    for (filter, expected) in [
        ("consumer=a", 3),
        ("exportType=full", 2),
        ("status=completed", 5),
        ("status=failed", 0),
        ("consumer=b&exportType=delta", 1),
        ("dataset=users", 5),
        ("dataset=users&status=failed", 0),
    ] {
        assert_eq!(service.pages(&format!("/exports?{filter}"), &[], 2).await.len(), expected, "{filter}");
    }
    // An empty list would say that nothing was exported. A dataset that the catalog had once still has its jobs.
    service.refuses("GET", "/exports?dataset=user", &[], 404, "no_dataset").await;
    let renamed = "with renamed as (
                     update cdc_export.exports set dataset = 'gone' where consumer_id = 'b' returning job)
                   update cdc_export.files set dataset = 'gone' where job in (select job from renamed)";
    database.run(renamed).await;
    for (filter, expected) in [("dataset=gone", 2), ("dataset=gone&status=failed", 0)] {
        assert_eq!(service.pages(&format!("/exports?{filter}"), &[], 2).await.len(), expected, "{filter}");
    }
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=00000000-0000-0000-0000-00000000000x", "cursor"),
        ("cursor=1_00000000-0000-0000-0000-000000000000", "cursor"),
        ("cursor='; drop table users; --", "cursor"),
        ("status=done", "status"),
        ("exportType=all", "exportType"),
        ("consumer=-", "consumer"),
    ] {
        assert_eq!(refused(&service, &format!("/exports?{query}")).await, field);
    }
}

#[tokio::test]
async fn a_job_of_several_datasets_is_listed_once_and_found_by_each_of_them() {
    let database = Database::with_users(5).await;
    let block = |name: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"users\"\n");
    let catalog = Catalog::of(&(block("logged") + &block("whole") + "capture = \"none\"\n"));
    let service = catalog.serving(&database, &["logged"]).await;
    let body = json!({ "datasets": ["logged", "whole"], "heal": true });
    let both = ended(&service, "/exports/delta", Some("a"), body).await;
    let alone = export(&service, "full", "logged", "a").await;
    assert_eq!(service.pages("/exports", &[], 1).await, [alone.clone(), both.clone()]);
    // With a dataset, type and status are those of its export, which was healed here.
    for (filter, expected) in [
        ("consumer=a", vec![&alone, &both]),
        ("exportType=delta", vec![&both]),
        ("exportType=full", vec![&alone]),
        ("consumer=a&exportType=delta&status=completed", vec![&both]),
        ("dataset=logged", vec![&alone, &both]),
        ("dataset=logged&exportType=delta", vec![&both]),
        ("dataset=whole&exportType=delta", vec![]),
        ("dataset=whole&exportType=full", vec![&both]),
        ("consumer=a&dataset=whole&status=completed", vec![&both]),
        ("consumer=b&dataset=whole", vec![]),
    ] {
        assert_eq!(json!(service.pages(&format!("/exports?{filter}"), &[], 1).await), json!(expected), "{filter}");
    }
}

#[tokio::test]
async fn the_exports_of_the_last_day_are_counted_by_the_hour() {
    let (database, service) = serving_users(5).await;
    let earlier = planted(
        "select 'a', 'users', n, 'full', 'completed', now() - hours * interval '1 hour'
         from unnest(array[30, 2, 2]) with ordinality as earlier (hours, n)",
    );
    let statements = format!(
        "{earlier} update cdc_export.exports set rows_exported = 5;
         insert into cdc_export.lanes (consumer_id, dataset, last_sequence, last_number) values ('a', 'users', 3, 3)"
    );
    database.run(&statements).await;
    for consumer in ["a", "b"] {
        service.export("full", consumer).await;
    }
    let ad_hoc = service.call("POST", "/exports", &[]).await.json::<Value>().await.unwrap();
    service.ended(ad_hoc["jobId"].as_str().unwrap()).await;
    let activity = service.get("/exports/activity").await;
    assert!(is_time(&activity["since"]), "{activity}");
    let names = |of: &Value| {
        of.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&activity["consumers"]), vec!["a".to_owned(), "b".to_owned()]);
    assert_eq!(names(&activity["datasets"]), vec!["users".to_owned()]);
    // The hour may have changed meanwhile.
    let time = |value: &Value| value.as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    let jobs = service.get("/exports").await;
    let mut expected = json!({ "a": vec![0; 24], "b": vec![0; 24], "users": vec![0; 24] });
    for job in jobs["items"].as_array().unwrap() {
        let hours = (time(&job["createdAt"]) - time(&activity["since"])).num_hours();
        for name in [&job["consumerId"], &job["dataset"]] {
            if let Some(count) = name.as_str().filter(|_| hours >= 0).map(|name| &mut expected[name][hours as usize]) {
                *count = json!(count.as_u64().unwrap() + 1);
            }
        }
    }
    for item in activity["consumers"].as_array().unwrap().iter().chain(activity["datasets"].as_array().unwrap()) {
        assert_eq!(item["completed"], expected[item["name"].as_str().unwrap()], "{item}");
        let rows = |hour: usize| 5 * item["completed"][hour].as_u64().unwrap();
        assert!((0..24).all(|hour| item["rows"][hour] == rows(hour) && item["failed"][hour] == 0), "{item}");
    }
    let of_b = service.get("/exports/activity?consumer=b&dataset=users").await;
    assert_eq!(of_b["consumers"], json!([activity["consumers"][1]]));
    assert_eq!(names(&of_b["datasets"]), vec!["users".to_owned()]);
    assert_eq!(service.get("/exports/activity?consumer=nobody").await["datasets"], json!([]));
    // A consumer or a dataset with a failed export comes first.
    database.run("delete from users where id = 3; truncate users").await;
    let failed = service.submit("delta", "b").await;
    service.ended(&failed).await;
    let activity = service.get("/exports/activity").await;
    assert_eq!(names(&activity["consumers"]), ["b", "a"]);
    for of in [&activity["consumers"][0], &activity["datasets"][0]] {
        assert_eq!(of["failed"].as_array().unwrap().iter().filter(|count| **count == 1).count(), 1, "{of}");
    }
    for field in ["consumer", "dataset"] {
        assert_eq!(refused(&service, &format!("/exports/activity?{field}=-")).await, field);
    }
}

#[tokio::test]
async fn a_client_may_wait_for_the_end() {
    let (database, service) = serving_users(5).await;
    let held = database.hold_exports().await;
    let id = service.submit("full", "a").await;
    let begun = Instant::now();
    let job = service.get(&format!("/exports/{id}?wait=1")).await;
    assert!(job["finishedAt"].is_null() && begun.elapsed().as_secs_f64() >= 1.0, "{job}");
    let wait = format!("/exports/{id}?wait=60");
    let (job, ()) = tokio::join!(service.get(&wait), async { held.rollback().await.unwrap() });
    assert_eq!(job["status"], "completed");
    for bad in ["soon", "", "-1", "1.5", "%2B1", "0x1", "1%00"] {
        assert_eq!(refused(&service, &format!("/exports/{id}?wait={bad}")).await, "wait", "{bad}");
    }
    // A wait longer than the service's limit is valid, however long it is.
    service.get(&format!("/exports/{id}?wait=99999999999999999999")).await;
}

#[tokio::test]
async fn consumers_are_listed_with_what_waits_for_them() {
    let (database, service) = serving_users(10_019).await;
    service.export("full", "b").await;
    database.run("update users set name = name || '!' where id <= 7; delete from users where id = 8").await;
    let (job, _) = service.export("full", "a").await;
    database.run("alter table users disable trigger cdc_export_u; alter table users enable trigger cdc_export_u").await;
    let statements =
        "insert into watermarks (consumer_id, last_exported_at, updated_at) values ('c', '2026-01-01', now())";
    database.run(statements).await;

    // An export without a consumer is nobody's.
    service.call("POST", "/exports", &[]).await;
    let listed = service.pages("/consumers", &[], 2).await;
    let of = |listed: &[Value], members: &[&str]| {
        let values = listed.iter().map(|consumer| members.iter().map(|m| consumer[*m].clone()).collect::<Vec<_>>());
        json!(values.collect::<Vec<_>>())
    };
    assert_eq!(
        of(&listed, &["consumerId", "continuity", "lastExportedAt"]),
        json!([
            ["a", "trigger_changed", "2026-01-07T22:59:00.000000Z"],
            ["b", "trigger_changed", "2026-01-07T22:59:00.000000Z"],
            ["c", "no_snapshot", "2026-01-01T00:00:00.000000Z"],
        ])
    );
    assert_eq!((&listed[0]["lastJob"], &listed[2]["lastJob"]), (&job, &Value::Null));
    let without_time = |listed: &[Value]| {
        let mut listed = listed.to_vec();
        for consumer in &mut listed {
            assert!(is_time(&consumer["asOf"].take()) && consumer["behindSeconds"].take().is_u64(), "{consumer}");
        }
        listed
    };
    for (consumer, known) in [("b", &listed[1..2]), ("nobody", &listed[..0])] {
        let found = service.pages(&format!("/consumers?consumer={consumer}"), &[], 2).await;
        assert_eq!(without_time(&found), without_time(known));
    }
    for (query, field) in [("cursor=%20", "cursor"), ("consumer=-", "consumer")] {
        assert_eq!(refused(&service, &format!("/consumers?{query}")).await, field);
    }
}

#[tokio::test]
async fn a_watermark_is_forgotten_by_a_call() {
    let (_, service) = serving_users(9).await;
    service.export("full", "a").await;
    for _ in 0..2 {
        assert_eq!(service.call("DELETE", "/exports/watermark", &[("X-Consumer-ID", "a")]).await.status(), 204);
    }
    assert_eq!(service.watermark("a").await, None);
    let (_, file) = service.export("incremental", "a").await;
    assert_eq!(file.rows.len(), 9, "from the beginning");
}

#[tokio::test]
async fn a_watermark_is_not_forgotten_under_a_commit() {
    let database = Database::with_users(5).await;
    let service = Start::on(&database).with("FAILPOINTS", "worker.commit=hold@2").service().await;
    service.export("full", "a").await;
    database.add_users(6, 7).await;
    let id = service.submit("delta", "a").await;
    service.reaches("worker.commit").await;
    service.refuses("DELETE", "/exports/watermark", &[("X-Consumer-ID", "a")], 409, "committing").await;
    service.release("worker.commit").await;
    let job = service.ended(&id).await;
    assert_eq!(job["status"], "completed");
    assert_eq!(job["watermarkTo"].as_str(), service.watermark("a").await.as_deref());
}
