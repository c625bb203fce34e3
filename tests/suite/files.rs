//! The database's record of an export's files.

use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::harness::{Database, Start, eventually};

async fn recorded(database: &Database) -> Vec<Value> {
    let rows = "select coalesce(jsonb_agg(to_jsonb(f) - 'staged_name' - 'fetched_at' order by f.part), '[]')::text from cdc_export.files f";
    serde_json::from_str(&database.one::<String>(rows).await).unwrap()
}

#[tokio::test]
async fn a_completed_job_has_a_row_for_its_file_until_it_is_forgotten() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let service = Start::on(&database).service().await;
    let (job, _) = service.export("full", "a").await;
    let found = std::fs::metadata(service.path(&job)).unwrap();
    let modified_ns = found.mtime() * 1_000_000_000 + found.mtime_nsec();
    let place = json!({ "folder": { "inode": found.ino().to_string(), "modifiedNs": modified_ns.to_string() } });
    let file = json!({
        "job": job["jobId"], "part": 1, "place": place, "bytes": job["bytesWritten"], "rows": 5,
        "sha256": job["sha256"], "location": format!("file://{}", service.path(&job).display()),
    });
    assert_eq!(recorded(&database).await, [file]);
    database.run("delete from exports").await;
    assert_eq!(recorded(&database).await, Vec::<Value>::new());
    service.stop().await;
}

/// All bytes of all files, at once or in ranges that follow each other.
#[tokio::test]
async fn a_job_tells_when_its_files_were_fetched() {
    let database = Database::new().await;
    database.add_users(1, 500).await;
    let service = Start::on(&database).service().await;
    let (job, _) = service.export("full", "a").await;
    let id = job["jobId"].as_str().unwrap();
    assert_eq!(job["fetchedAt"], Value::Null);
    let path = format!("/exports/{id}/download");
    let get = async |method: &str, range: &str| {
        let answer = service.call(method, &path, &[("Range", range)]).await;
        answer.bytes().await.unwrap()
    };
    let size = job["bytesWritten"].as_u64().unwrap();
    get("HEAD", "bytes=0-").await;
    get("GET", "bytes=-100").await;
    get("GET", "bytes=0-99").await;
    get("GET", &format!("bytes=200-{size}")).await;
    // A further export's record comes after those of the requests above, if they made any.
    let (other, _) = service.export("full", "b").await;
    let other = other["jobId"].as_str().unwrap();
    service.call("GET", &format!("/exports/{other}/download"), &[]).await.bytes().await.unwrap();
    let fetched = async |id: &str| {
        eventually("it is fetched", async || service.job(id).await["fetchedAt"].as_str().map(str::to_owned)).await
    };
    fetched(other).await;
    assert_eq!(service.job(id).await["fetchedAt"], Value::Null, "there is a gap");
    get("GET", "bytes=100-").await;
    let first = fetched(id).await;
    service.call("GET", &path, &[]).await.bytes().await.unwrap();
    let (third, _) = service.export("full", "c").await;
    let third = third["jobId"].as_str().unwrap();
    service.call("GET", &format!("/exports/{third}/download"), &[]).await.bytes().await.unwrap();
    fetched(third).await;
    assert_eq!(fetched(id).await, first, "the first time stands");
    service.stop().await;
}
