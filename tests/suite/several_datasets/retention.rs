//! The files of a job are kept or removed together.

use serde_json::{Value, json};

use crate::catalog::export;
use crate::harness::until;
use crate::several_datasets::{export_all, id, tables};

#[tokio::test]
async fn no_file_of_a_job_is_removed_before_all_may_be() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let first = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let name = |job: &Value| job["outputFilename"].as_str().unwrap().to_owned();
    let of_job: Vec<_> = first["exports"].as_array().unwrap().iter().map(name).collect();
    // The job's files of two lanes are beyond the count. That of the third lane is its newest.
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
    let kept = sorted(&[&of_job, &alone[1..]]);
    assert_eq!(service.files(), sorted(&[&of_job, &alone]));
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
        until("the file of a job of its own goes", async || files_of("a") == kept).await;
    }
    let last = name(&export(&service, "full", "beta", "a").await);
    let _keeper = keeping().with("RETAIN_FILES", 1).service().await;
    let kept = sorted(&[&alone[1..], &[last]]);
    until("all files of the job go", async || files_of("a") == kept).await;
}

#[tokio::test]
async fn an_export_that_its_consumer_may_not_have_keeps_the_files_of_its_job() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(export_all(&service, "full", json!({ "datasets": "*" })).await);
    }
    let names = |jobs: &[Value]| {
        let exports = jobs.iter().flat_map(|job| job["exports"].as_array().unwrap());
        let mut names: Vec<_> = exports.map(|export| export["outputFilename"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    // The consumer acknowledges the exports of one lane one by one.
    for (at, job) in jobs[..2].iter().enumerate() {
        assert_eq!(service.call("POST", &format!("/exports/{}/ack?dataset=gamma", id(job)), &[]).await.status(), 200);
        let keeper = catalog.start(&database).sharing_output(&service).with("RETAIN_FILES", 1).service().await;
        until("the job's files go", async || keeper.files() == names(&jobs[at + 1..])).await;
        keeper.stop().await;
    }
}
