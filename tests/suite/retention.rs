//! Files and jobs that go: on request, by age, by count.

use serde_json::Value;

use crate::harness::{Database, Start, eventually};

#[tokio::test]
async fn a_file_is_removed_on_request_and_its_job_stays() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let service = Start::on(&database).service().await;
    let (job, _) = service.export("full", "a").await;
    let path = format!("/exports/{}", job["jobId"].as_str().unwrap());
    for _ in 0..2 {
        assert_eq!(service.call("DELETE", &path, &[]).await.status(), 204);
        assert_eq!(service.files(), Vec::<String>::new());
        assert_eq!(service.call("GET", &format!("{path}/download"), &[]).await.status(), 410);
        assert_eq!(service.job(job["jobId"].as_str().unwrap()).await, job);
    }
    assert_eq!(service.call("DELETE", "/exports/x", &[]).await.status(), 404);

    // What somebody put in its place is theirs.
    let (job, _) = service.export("full", "a").await;
    std::fs::remove_file(service.path(&job)).unwrap();
    std::fs::write(service.path(&job), "theirs").unwrap();
    let path = format!("/exports/{}", job["jobId"].as_str().unwrap());
    assert_eq!(service.call("DELETE", &path, &[]).await.status(), 204);
    assert_eq!(std::fs::read_to_string(service.path(&job)).unwrap(), "theirs");

    let held = database.hold_exports().await;
    let id = service.submit("full", "a").await;
    let answer = service.call("DELETE", &format!("/exports/{id}"), &[]).await;
    assert_eq!(
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap()["code"].as_str()),
        (409, Some("still_open"))
    );
    held.rollback().await.unwrap();
    service.ended(&id).await;
    service.stop().await;
}

#[tokio::test]
async fn what_is_too_old_or_too_much_goes() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let service = Start::on(&database).service().await;
    let mut names = Vec::new();
    for (consumer, jobs) in [("a", 5), ("b", 2)] {
        for _ in 0..jobs {
            let (job, _) = service.export("full", consumer).await;
            names.push(job["outputFilename"].as_str().unwrap().to_owned());
        }
    }
    let watermark = service.watermark("a").await;
    let files = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    assert_eq!(service.files(), files(&names));
    database
        .run(&format!(
            "update exports set finished_at = finished_at - interval '2 days' where output_filename = '{}'",
            names[6]
        ))
        .await;

    // The newest three of each consumer, and none that is older than a day.
    let keeping = Start::on(&database).sharing_output(&service).with("RETAIN_FILES", "1d,3").service().await;
    let kept = files(&[&names[2..5], &names[5..6]].concat());
    eventually("files go", || async { (keeping.files() == kept).then_some(()) }).await;
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 7, "their jobs stay");
    keeping.stop().await;

    // A job takes its file with it.
    let keeping = Start::on(&database).sharing_output(&service).with("RETAIN_JOBS", "1").service().await;
    let left = "select count(*) from exports";
    eventually("jobs go", || async { (database.one::<i64>(left).await == 2).then_some(()) }).await;
    assert_eq!(keeping.files(), files(&[names[4].clone(), names[5].clone()]));
    assert_eq!(keeping.watermark("a").await, watermark);
    let (job, _) = keeping.export("delta", "a").await;
    assert_eq!((&job["rowsExported"], &job["continuity"]), (&0.into(), &Value::Null), "the position stays too");
    keeping.stop().await;
    service.stop().await;
}
