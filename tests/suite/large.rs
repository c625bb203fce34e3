//! Values beyond the bound of memory.

use serde_json::{Value, json};

use crate::harness::{Database, Start};

const MAX: usize = 1 << 20;

/// Users 1 to 9, of whom user 5 has a name of so many bytes.
async fn with_a_wide_row(bytes: usize) -> Database {
    let database = Database::new_with("alter table users alter column name type text").await;
    database.add_users(1, 9).await;
    database.run(&format!("update users set name = repeat('x', {bytes}) where id = 5")).await;
    database
}

fn error(job: &Value) -> (&Value, &Value, &str) {
    (&job["status"], &job["error"]["code"], job["error"]["detail"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn a_row_beyond_the_bound_fails_its_export_for_good() {
    let database = with_a_wide_row(MAX + 1).await;
    let service = Start::on(&database).with("CELL_MAX_BYTES", "1MiB").service().await;
    let detail = "a row's `name` has more bytes than CELL_MAX_BYTES: shorten the value or raise that setting";
    for export_type in ["full", "incremental", "delta"] {
        let job = service.ended(&service.submit(export_type, "a").await).await;
        assert_eq!(error(&job), (&json!("failed"), &json!("row_too_large"), detail), "{export_type}");
        assert_eq!(job["attempt"], 1, "it would be the same again");
    }
    database.run("update users set is_deleted = true where id = 5").await;
    let job = service.ended(&service.submit("delta", "a").await).await;
    assert_eq!(error(&job), (&json!("failed"), &json!("row_too_large"), detail), "a deletion");
    assert_eq!(service.watermark("a").await, None);
    assert!(service.files().is_empty());

    database.run("update users set name = 'short', is_deleted = false where id = 5").await;
    service.export("full", "a").await;
    // Whom the export is not about has no say: in a full one a deleted row, in a delta one that has not changed.
    database.run(&format!("update users set is_deleted = true, name = repeat('x', {}) where id = 5", MAX + 1)).await;
    service.export("full", "a").await;
    database.run("update users set name = 'changed' where id = 7").await;
    let (_, delta) = service.export("incremental", "a").await;
    assert_eq!(delta.ids(), [7]);
}

#[tokio::test]
async fn a_row_at_the_bound_is_exported() {
    let database = with_a_wide_row(MAX).await;
    database.run("alter table users alter column name drop not null; update users set name = null where id = 6").await;
    let service = Start::on(&database).with("CELL_MAX_BYTES", "1048576").service().await;
    for export_type in ["full", "delta"] {
        let (job, file) = service.export(export_type, export_type).await;
        assert_eq!(job["rowsExported"], 9);
        let name = file.header.iter().position(|column| column == "name").unwrap();
        assert_eq!(file.rows.iter().map(|row| row[name].len()).max(), Some(MAX));
    }
}

/// Nobody can shorten a value of a deleted row, so a role that may insert and delete could make each delta fail.
#[tokio::test]
async fn a_deleted_row_beyond_the_bound_comes_with_its_key_alone() {
    let database = with_a_wide_row(MAX).await;
    let service = Start::on(&database).with("CELL_MAX_BYTES", "1MiB").service().await;
    service.export("full", "a").await;
    database.run(&format!("insert into users (id, name, email, created_at, updated_at) values (10, repeat('x', {}), 'j', now(), now())", MAX + 1)).await;
    database.run("delete from users where id in (5, 9, 10)").await;
    let (_, delta) = service.export("delta", "a").await;
    assert_eq!((delta.ids(), delta.sorted("name")), (vec![5, 9, 10], vec![""; 3]));
}

/// A value is refused before it is fetched: the service never has it in its memory.
#[tokio::test]
async fn a_refused_value_takes_no_memory() {
    let database = with_a_wide_row(200 << 20).await;
    let service = Start::on(&database).service().await;
    assert_eq!(service.ended(&service.submit("full", "a").await).await["error"]["code"], "row_too_large");
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    // Elsewhere than on Linux there is no such file.
    assert!(peak.is_none_or(|kib: u64| kib < 150 << 10), "{peak:?} kB");
}
