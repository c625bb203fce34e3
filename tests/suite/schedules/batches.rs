//! Schedules of batches: a slot makes one batch of several datasets, or of all that are ready.

use serde_json::{Value, json};

use crate::batches::{ended, tables};
use crate::harness::{Database, Service, ends};
use crate::schedules::{becomes, set_back, shown};

fn schedule(name: &str, more: &str) -> String {
    format!("[[schedule]]\nname = \"{name}\"\nconsumer = \"{name}\"\ntype = \"delta\"\nevery = \"366d\"\n{more}\n")
}

/// Returns the schedule's last batch when it has ended.
async fn last_batch(service: &Service, name: &str) -> Value {
    let run = becomes(service, name, "it runs", |it| it["lastJob"].is_object()).await;
    ended(service, &run["lastJob"]["batchId"]).await
}

async fn next_batch(service: &Service, database: &Database, name: &str, last: &Value) -> Value {
    set_back(database, name, 1).await;
    let other = |it: &Value| it["lastJob"].is_object() && it["lastJob"]["batchId"] != last["batchId"];
    becomes(service, name, "it runs again", other).await;
    last_batch(service, name).await
}

fn members(batch: &Value) -> Vec<(&str, &str)> {
    let jobs = batch["jobs"].as_array().unwrap().iter();
    jobs.map(|job| (job["dataset"].as_str().unwrap(), job["exportType"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn a_slot_makes_one_batch_which_heals_its_members() {
    let (database, catalog) = tables().await;
    let file = std::fs::read_to_string(catalog.path()).unwrap();
    let some = schedule("some", "datasets = [\"gamma\", \"alpha\"]\nheal = true");
    catalog.write(&(file + &some + &schedule("all", "datasets = \"*\"")));
    let service = catalog.start(&database).service().await;
    let (first, all) = (last_batch(&service, "some").await, last_batch(&service, "all").await);
    assert_eq!(
        (&first["status"], members(&first)),
        (&json!("completed"), vec![("alpha", "delta"), ("gamma", "delta")])
    );
    let datasets = all["jobs"].as_array().unwrap().len();
    assert_eq!((&all["status"], datasets), (&json!("completed"), 3), "{all}");
    let list = shown(&service, "some").await;
    assert_eq!((&list["dataset"], &list["datasets"]), (&Value::Null, &json!(["alpha", "gamma"])), "{list}");
    assert_eq!(shown(&service, "all").await["datasets"], json!(["*"]));
    let told = service.events("batch_submitted");
    assert!(told.iter().any(|event| event["schedule"] == "some" && event["members"] == 2), "{told:?}");

    database.run("alter table gamma alter n type bigint").await;
    let healed = next_batch(&service, &database, "some", &first).await;
    assert_eq!(
        (&healed["status"], members(&healed)),
        (&json!("completed"), vec![("alpha", "delta"), ("gamma", "full")])
    );
    let failed = next_batch(&service, &database, "all", &all).await;
    assert_eq!((&failed["status"], &failed["error"]["member"]), (&json!("failed"), &json!("gamma")), "{failed}");

    // An open export of one of its datasets skips a slot; what isn't ready is left out of all, and refuses a list.
    let held = database.open("lock table alpha in access exclusive mode").await;
    let open = crate::catalog::post(&service, "/exports/full", Some("some"), &json!({ "dataset": "alpha" })).await;
    let open: Value = open.json().await.unwrap();
    set_back(&database, "some", 1).await;
    becomes(&service, "some", "a slot is skipped", |it| it["skipped"] == 1).await;
    held.rollback().await.unwrap();
    service.ended(open["jobId"].as_str().unwrap()).await;
    ends(catalog.command(&database, &["untrack", "gamma"]).await, 0, "");
    set_back(&database, "some", 1).await;
    becomes(&service, "some", "it is refused", |it| it["refused"] == "not_tracked").await;
    let two = next_batch(&service, &database, "all", &failed).await;
    assert_eq!((members(&two).len(), &two["leftOut"]), (2, &json!([{ "dataset": "gamma", "reason": "not_tracked" }])));
}
