//! Schedules of several datasets: a slot makes one job of the named datasets, or of all that are ready.

use serde_json::{Value, json};

use crate::catalog::post;
use crate::harness::{Database, Service, ends};
use crate::schedules::{becomes, set_back, shown};
use crate::several_datasets::{id, of_exports, tables};

fn schedule(name: &str, more: &str) -> String {
    format!("[[schedule]]\nname = \"{name}\"\nconsumer = \"{name}\"\ntype = \"delta\"\nevery = \"366d\"\n{more}\n")
}

/// Returns the schedule's last job when it has ended.
async fn last_job(service: &Service, name: &str) -> Value {
    let run = becomes(service, name, "it runs", |it| it["lastJob"].is_object()).await;
    service.ended(id(&run["lastJob"])).await
}

async fn next_job(service: &Service, database: &Database, name: &str, last: &Value) -> Value {
    set_back(database, name, 1).await;
    let other = |it: &Value| it["lastJob"].is_object() && it["lastJob"]["jobId"] != last["jobId"];
    becomes(service, name, "it runs again", other).await;
    last_job(service, name).await
}

#[tokio::test]
async fn a_slot_makes_one_job_which_heals_its_exports() {
    let (database, catalog) = tables().await;
    let file = std::fs::read_to_string(catalog.path()).unwrap();
    let some = schedule("some", "datasets = [\"gamma\", \"alpha\"]\nheal = true");
    catalog.write(&(file + &some + &schedule("all", "datasets = \"*\"")));
    let service = catalog.start(&database).service().await;
    let (first, all) = (last_job(&service, "some").await, last_job(&service, "all").await);
    assert_eq!((&first["status"], of_exports(&first, "dataset")), (&json!("completed"), json!(["alpha", "gamma"])));
    assert_eq!(of_exports(&first, "exportType"), json!(["delta", "delta"]));
    let datasets = all["exports"].as_array().unwrap().len();
    assert_eq!((&all["status"], datasets), (&json!("completed"), 3), "{all}");
    let list = shown(&service, "some").await;
    assert_eq!((&list["dataset"], &list["datasets"]), (&Value::Null, &json!(["alpha", "gamma"])), "{list}");
    assert_eq!(list["lastJob"], first);
    assert_eq!(shown(&service, "all").await["datasets"], json!(["*"]));
    let submitted = service.events("export_submitted");
    assert!(submitted.iter().any(|event| event["schedule"] == "some" && event["datasets"] == 2), "{submitted:?}");

    database.run("alter table gamma alter n type bigint").await;
    let healed = next_job(&service, &database, "some", &first).await;
    assert_eq!(healed["status"], "completed", "{healed}");
    assert_eq!(of_exports(&healed, "exportType"), json!(["delta", "full"]));
    let failed = next_job(&service, &database, "all", &all).await;
    assert_eq!([&failed["status"], &failed["error"]["dataset"]], ["failed", "gamma"], "{failed}");

    // An open export of one of its datasets skips a slot; what isn't ready is left out of all, and refuses a list.
    let held = database.open("lock table alpha in access exclusive mode").await;
    let open = post(&service, "/exports/full", Some("some"), &json!({ "dataset": "alpha" })).await;
    let open: Value = open.json().await.unwrap();
    set_back(&database, "some", 1).await;
    becomes(&service, "some", "a slot is skipped", |it| it["skipped"] == 1).await;
    held.rollback().await.unwrap();
    service.ended(id(&open)).await;
    ends(catalog.command(&database, &["untrack", "gamma"]).await, 0, "");
    set_back(&database, "some", 1).await;
    becomes(&service, "some", "it is refused", |it| it["refused"] == "not_tracked").await;
    let two = next_job(&service, &database, "all", &failed).await;
    assert_eq!(of_exports(&two, "dataset"), json!(["alpha", "beta"]));
    assert_eq!(two["leftOut"], json!([{ "dataset": "gamma", "reason": "not_tracked" }]));
}
