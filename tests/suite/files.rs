//! What the database records of an export's file, beside processes of the version before, which know only the columns of `exports`.

use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::harness::{Csv, Database, Service, Start};
use crate::lost_files::dead_after_a_commit;

async fn recorded(database: &Database) -> Vec<Value> {
    let rows =
        "select coalesce(jsonb_agg(to_jsonb(f) - 'staged_name' order by f.name), '[]')::text from cdc_export.files f";
    serde_json::from_str(&database.one::<String>(rows).await).unwrap()
}

async fn downloaded(service: &Service, id: &str) -> (u16, String) {
    let answer = service.call("GET", &format!("/exports/{id}/download"), &[]).await;
    (answer.status().as_u16(), answer.text().await.unwrap())
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
        "job": job["jobId"], "part": 1, "name": job["outputFilename"], "place": place, "bytes": job["bytesWritten"], "rows": 5,
        "sha256": job["sha256"], "location": format!("file://{}", service.path(&job).display()),
    });
    assert_eq!(recorded(&database).await, [file]);
    database.run("delete from exports").await;
    assert_eq!(recorded(&database).await, Vec::<Value>::new());
    service.stop().await;
}

#[tokio::test]
async fn a_file_that_only_exports_knows_is_named_served_and_removed() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let (doomed, id, _) = dead_after_a_commit(&database, "/exports/full", Some("a")).await;
    // As the version before committed it.
    database.run("delete from cdc_export.files").await;
    let service = Start::on(&database).sharing_output(&doomed).service().await;
    let job = service.ended(&id).await;
    assert_eq!(job["status"], "completed", "{job}");
    let (status, text) = downloaded(&service, &id).await;
    assert_eq!((status, text), (200, std::fs::read_to_string(service.path(&job)).unwrap()));
    database.run("update exports set file_inode = file_inode | (1::bigint << 63)").await;
    assert_eq!(downloaded(&service, &id).await.0, 410, "another inode, as large as one may be");
    database.run("update exports set file_inode = file_inode & ~(1::bigint << 63)").await;
    assert_eq!(service.call("DELETE", &format!("/exports/{id}"), &[]).await.status(), 204);
    assert_eq!(service.files(), Vec::<String>::new());
    service.stop().await;
}

#[tokio::test]
async fn what_the_version_before_changes_of_a_file_is_repeated() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let (doomed, id, _) = dead_after_a_commit(&database, "/exports/full", Some("a")).await;
    // Its own `rename_output`, and later its own `give_up`.
    database.run("update exports set output_filename = 'full_a_20200101T000000Z-2.csv'").await;
    let service = Start::on(&database).sharing_output(&doomed).service().await;
    let job = service.ended(&id).await;
    assert_eq!(
        (&job["status"], &job["outputFilename"]),
        (&json!("completed"), &json!("full_a_20200101T000000Z-2.csv"))
    );
    assert_eq!(Csv::read(&service.path(&job)).rows.len(), 5);
    service.stop().await;
    let (_doomed, lost, _) = dead_after_a_commit(&database, "/exports/full", Some("b")).await;
    assert_eq!(recorded(&database).await.len(), 2);
    let given_up = "update exports set status = 'failed', error_code = 'file_lost', staged_name = null, sha256 = null,
                      file_inode = null, file_modified_ns = null
                    where published_at is null";
    database.run(given_up).await;
    let left = recorded(&database).await;
    assert_eq!((left.len(), &left[0]["job"]), (1, &json!(id)), "not that of {lost}");
}

#[tokio::test]
async fn an_upgrade_keeps_the_files_and_asks_for_no_grant() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let service = Start::on(&database).service().await;
    let (job, _) = service.export("full", "a").await;
    let id = job["jobId"].as_str().unwrap();
    let output = Start::on(&database).sharing_output(&service);
    service.stop().await;
    let role = format!("runner_{}", uuid::Uuid::new_v4().simple());
    database
        .run(&format!(
            "drop function cdc_export.exports_file_follows cascade;
             drop table cdc_export.files;
             alter table public.exports drop constraint a_folder_has_inode_and_time;
             delete from cdc_export.migrations where version in (21, 25);
             create role {role}; grant select, insert, update, delete on all tables in schema cdc_export to {role}"
        ))
        .await;
    let service = output.service().await;
    assert_eq!(downloaded(&service, id).await.0, 200);
    let may = format!(
        "select bool_and(has_table_privilege('{role}', 'cdc_export.files', may))
         from unnest(array['select', 'insert', 'update', 'delete']) as may"
    );
    assert!(database.one::<bool>(&may).await);
    service.export("delta", "a").await;
    assert_eq!(recorded(&database).await.len(), 1);
    service.stop().await;
    database.run(&format!("drop owned by {role}; drop role {role}")).await;
}
