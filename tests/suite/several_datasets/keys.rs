//! Keys for some of a job's datasets, and calls that name one of them.

use serde_json::{Value, json};

use crate::catalog::Catalog;
use crate::harness::{Database, Service, refusal};
use crate::keys::{header_of, made};
use crate::several_datasets::{TABLES, export_all, id, of_exports, submit, tables};

/// Makes a key for these datasets, as a header's value.
pub(super) async fn bearer(catalog: &Catalog, database: &Database, datasets: &[&str]) -> String {
    let name = datasets.join(" ");
    let datasets: Vec<_> = datasets.iter().flat_map(|dataset| ["--dataset", *dataset]).collect();
    header_of(&made(catalog.start(database), &name, &datasets).await)
}

async fn answer(service: &Service, method: &str, path: &str, key: &str) -> (u16, String) {
    let answer = service.call(method, path, &[("Authorization", key)]).await;
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn a_key_for_one_dataset_sees_a_job_as_if_it_had_no_other() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let alpha = bearer(&catalog, &database, &["alpha"]).await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    database.run("truncate beta").await;
    let failed = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    let shown = async |method: &str, path: &str| {
        let (status, text) = answer(&service, method, path, &alpha).await;
        let hidden = text.contains("beta") || text.contains("gamma");
        assert!(status == 200 && !hidden, "{method} {path}: {status} {text}");
        text
    };
    let path = |job: &Value, call: &str| format!("/exports/{}{call}", id(job));
    let job: Value = serde_json::from_str(&shown("GET", &path(&full, "?wait=1")).await).unwrap();
    assert_eq!((&job["exports"], &job["rowsExported"]), (&json!([full["exports"][0]]), &json!(10)), "{job}");
    for call in ["/events", "/download", "/files/1/download", "/manifest"] {
        shown("GET", &path(&full, call)).await;
    }
    let acknowledged: Value = serde_json::from_str(&shown("POST", &path(&full, "/ack")).await).unwrap();
    assert_eq!(of_exports(&acknowledged, "acknowledged"), json!([true]));
    let lanes: Vec<String> = database.all("select dataset from cdc_export.lanes where acknowledged is not null").await;
    assert_eq!(lanes, ["alpha"]);

    let job: Value = serde_json::from_str(&shown("GET", &path(&failed, "")).await).unwrap();
    let error = &job["error"];
    assert_eq!((&job["status"], &error["code"]), (&json!("failed"), &json!("other_dataset_failed")), "{job}");
    assert_eq!((&error["dataset"], of_exports(&job, "dataset")), (&Value::Null, json!(["alpha"])), "{job}");
    assert!(shown("GET", &path(&failed, "/events")).await.contains("event: failed"));
    for (query, jobs) in
        [("", vec![&failed, &full]), ("?status=failed", vec![&failed]), ("?dataset=alpha", vec![&failed, &full])]
    {
        let list: Value = serde_json::from_str(&shown("GET", &format!("/exports{query}")).await).unwrap();
        let listed: Vec<_> = list["items"].as_array().unwrap().iter().map(id).collect();
        assert_eq!(listed, jobs.into_iter().map(id).collect::<Vec<_>>(), "{query}");
    }
}

#[tokio::test]
async fn a_key_for_one_dataset_cancels_and_retries_no_job_of_several() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let alpha = bearer(&catalog, &database, &["alpha"]).await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let lock = database.open("lock table beta in access exclusive mode").await;
    let open = submit(&service, "full", json!({ "datasets": "*" })).await;
    let require_not_found = async |when: &str| {
        for (job, call) in [(&full, "cancel"), (&full, "retry"), (&open, "cancel"), (&open, "retry")] {
            let path = format!("/exports/{}/{call}", id(job));
            let answer = service.call("POST", &path, &[("Authorization", &*alpha)]).await;
            assert_eq!(refusal(answer).await, (404, "not_found".to_owned()), "{path} {when}");
        }
    };
    require_not_found("while it runs").await;
    let cancelled = service.call("POST", &format!("/exports/{}/cancel", id(&open)), &[]).await;
    assert_eq!(cancelled.status(), 202);
    lock.rollback().await.unwrap();
    service.becomes(id(&open), "cancelled").await;
    require_not_found("when it has ended").await;
    database.run("delete from cdc_export.exports where dataset <> 'alpha'").await;
    require_not_found("when its other exports are removed").await;
    assert_eq!(of_exports(&service.job(id(&full)).await, "dataset"), json!(["alpha"]));
}

#[tokio::test]
async fn a_call_for_one_of_several_exports_names_its_dataset() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let two = bearer(&catalog, &database, &["alpha", "gamma"]).await;
    let all = bearer(&catalog, &database, &TABLES).await;
    let job = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let path = |call: &str| format!("/exports/{}{call}", id(&job));
    for (method, call) in [("GET", "/download"), ("GET", "/files/1/download"), ("GET", "/manifest"), ("GET", "/url")] {
        for (key, hidden) in [(&all, &[][..]), (&two, &["beta"])] {
            let (status, text) = answer(&service, method, &path(call), key).await;
            let problem: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((status, &problem["code"]), (409, &json!("several_datasets")), "{method} {call}");
            for table in TABLES {
                assert_eq!(text.contains(table), !hidden.contains(&table), "{method} {call}: {text}");
            }
        }
        // A hidden dataset and one that the job does not have.
        let refusal = async |dataset: &str| {
            let path = path(&format!("{call}?dataset={dataset}"));
            let (status, text) = answer(&service, method, &path, &two).await;
            (status, text.replace(dataset, "the dataset"))
        };
        let hidden = refusal("beta").await;
        assert_eq!((hidden.0, &hidden), (404, &refusal("delta").await), "{method} {call}");
    }
    for call in ["/download", "/files/1/download", "/manifest"] {
        assert_eq!(answer(&service, "GET", &path(&format!("{call}?dataset=gamma")), &two).await.0, 200, "{call}");
    }
    for (query, expected) in [("?dataset=gamma", json!([null, null, true])), ("", json!([true, true, true]))] {
        let (_, acknowledged) = answer(&service, "POST", &path(&format!("/ack{query}")), &all).await;
        let acknowledged: Value = serde_json::from_str(&acknowledged).unwrap();
        assert_eq!(of_exports(&acknowledged, "acknowledged"), expected, "{acknowledged}");
    }
    assert_eq!(answer(&service, "POST", &path("/ack?dataset=beta"), &two).await.0, 404);
    for dataset in ["beta", "delta"] {
        assert_eq!(answer(&service, "DELETE", &path(&format!("?dataset={dataset}")), &two).await.0, 404, "{dataset}");
    }
    assert_eq!(answer(&service, "DELETE", &path("?dataset=gamma"), &two).await.0, 204);
    for (dataset, status) in [("alpha", 200), ("beta", 200), ("gamma", 410)] {
        let download = path(&format!("/download?dataset={dataset}"));
        assert_eq!(answer(&service, "GET", &download, &all).await.0, status, "{dataset}");
    }
    assert_eq!(answer(&service, "DELETE", &path(""), &two).await.0, 204, "for the exports that the key may see");
    for (dataset, status) in [("alpha", 410), ("beta", 200)] {
        let download = path(&format!("/download?dataset={dataset}"));
        assert_eq!(answer(&service, "GET", &download, &all).await.0, status, "{dataset}");
    }
}

#[tokio::test]
async fn a_consumer_of_hidden_datasets_is_as_new_as_an_unknown_one() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    export_all(&service, "full", json!({ "datasets": ["alpha"] })).await;
    let gamma = bearer(&catalog, &database, &["gamma"]).await;
    for consumer in ["a", "unknown"] {
        let headers = [("X-Consumer-ID", consumer), ("Authorization", &*gamma)];
        let answer: Value = service.post("/exports/full", &headers, &json!({})).await.json().await.unwrap();
        assert_eq!(answer["newConsumer"], true, "{consumer}: {answer}");
    }
    let beta = submit(&service, "full", json!({ "datasets": ["beta"] })).await;
    assert!(beta.get("newConsumer").is_none(), "{beta}");
}
