//! The files of a batch are kept or removed together.

use serde_json::{Value, json};

use crate::batches::{export_all, tables};
use crate::catalog::export;
use crate::harness::until;

#[tokio::test]
async fn no_file_of_a_batch_is_removed_before_all_may_be() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let first = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let name = |job: &Value| job["outputFilename"].as_str().unwrap().to_owned();
    let of_batch: Vec<_> = first["jobs"].as_array().unwrap().iter().map(name).collect();
    // The batch's files of two lanes are beyond the count. That of the third lane is its newest.
    let mut alone = Vec::new();
    for dataset in ["alpha", "alpha", "gamma"] {
        alone.push(name(&export(&service, "full", dataset, "a").await));
    }
    let keeping = || catalog.start(&database).sharing_output(&service);
    let sorted = |names: &[&[String]]| {
        let mut names = names.concat();
        names.sort();
        names
    };
    let kept = sorted(&[&of_batch, &alone[1..]]);
    assert_eq!(service.files(), sorted(&[&of_batch, &alone]));
    let files_of = |consumer: &str| {
        let consumer = format!("_{consumer}_");
        service.files().into_iter().filter(|name| name.contains(&consumer)).collect::<Vec<_>>()
    };
    for setting in ["RETAIN_FILES", "RETAIN_JOBS"] {
        // The lanes of another consumer show that a round has ended.
        for _ in 0..2 {
            export(&service, "full", "alpha", "b").await;
        }
        let _keeper = keeping().with(setting, 1).service().await;
        until("a round ends", async || files_of("b").len() == 1).await;
        until("the file of no batch goes", async || files_of("a") == kept).await;
    }
    let last = name(&export(&service, "full", "beta", "a").await);
    let _keeper = keeping().with("RETAIN_FILES", 1).service().await;
    let kept = sorted(&[&alone[1..], &[last]]);
    until("all files of the batch go", async || files_of("a") == kept).await;
}

#[tokio::test]
async fn a_member_that_its_consumer_may_not_have_keeps_the_files_of_its_batch() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let mut batches = Vec::new();
    for _ in 0..3 {
        batches.push(export_all(&service, "full", json!({ "datasets": "*" })).await);
    }
    // One lane acknowledges, and has acknowledged its first export alone.
    let job = |batch: usize, at: usize| batches[batch]["jobs"][at].clone();
    let ack = format!("/exports/{}/ack", job(0, 2)["jobId"].as_str().unwrap());
    assert_eq!(service.call("POST", &ack, &[]).await.status(), 200);
    let names = |batches: &[Value]| {
        let jobs = batches.iter().flat_map(|batch| batch["jobs"].as_array().unwrap());
        let mut names: Vec<_> = jobs.map(|job| job["outputFilename"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let keeping = || catalog.start(&database).sharing_output(&service).with("RETAIN_FILES", 1);
    let keeper = keeping().service().await;
    until("the first batch goes", async || keeper.files() == names(&batches[1..])).await;
    keeper.stop().await;
    let ack = format!("/exports/{}/ack", job(1, 2)["jobId"].as_str().unwrap());
    assert_eq!(service.call("POST", &ack, &[]).await.status(), 200);
    let keeper = keeping().service().await;
    until("the second batch goes", async || keeper.files() == names(&batches[2..])).await;
}
