//! The database's record of an export's files.

use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::harness::{Database, serving_users};

async fn recorded(database: &Database) -> Vec<Value> {
    let rows =
        "select coalesce(jsonb_agg(to_jsonb(f) - 'staged_name' order by f.part), '[]')::text from cdc_export.files f";
    serde_json::from_str(&database.one::<String>(rows).await).unwrap()
}

#[tokio::test]
async fn a_completed_job_has_a_row_for_its_file_until_it_is_forgotten() {
    let (database, service) = serving_users(5).await;
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
}
