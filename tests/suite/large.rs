//! Values beyond the bound of memory.

use serde_json::{Value, json};

use crate::catalog::{Catalog, export};
use crate::harness::{Csv, Database, Start};

const MAX: usize = 1 << 20;

/// Users 1 to 9, of whom user 5 has a name of so many bytes.
async fn with_a_wide_row(bytes: usize) -> Database {
    let database = Database::new().await;
    database.run("alter table users alter column name type text").await;
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
    service.stop().await;
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
    service.export("full", "gone").await;
    database.run("delete from users where id = 5").await;
    let (_, delta) = service.export("delta", "gone").await;
    assert_eq!(delta.rows[0][2].len(), MAX, "the last image of a row that is gone");
    service.stop().await;
}

/// A value is refused before it is fetched: the service never has it in its memory.
#[tokio::test]
async fn a_refused_value_takes_no_memory() {
    let database = with_a_wide_row(200 << 20).await;
    let service = Start::on(&database).service().await;
    let job = service.ended(&service.submit("full", "a").await).await;
    assert_eq!(job["error"]["code"], "row_too_large");
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    // Elsewhere than on Linux there is no such file.
    assert!(peak.is_none_or(|kib: u64| kib < 150 << 10), "{peak:?} kB");
    service.stop().await;
}

/// Whatever a row holds, its owner deletes it and changes its key; a large one doesn't take his time and memory for an image either.
#[tokio::test]
async fn what_a_row_holds_fails_no_statement_of_its_owner() {
    let columns = "b bytea, t text, j json, n numeric, f float8, d date, a int[], i interval";
    let database = Database::new().await;
    database
        .run(&format!(
            "create table plain (id int primary key, {columns});
             create table parts (id int primary key, {columns}) partition by range (id);
             create table part partition of parts for values from (0) to (99);
             -- Not compressed, so that they are made in no time.
             alter table plain alter b set storage external, alter t set storage external;
             alter table parts alter b set storage external, alter t set storage external;
             alter table part alter b set storage external, alter t set storage external"
        ))
        .await;
    let names = ["plain", "parts"];
    let catalog =
        Catalog::of(&names.map(|name| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\n")).concat());
    for table in names {
        catalog.track(&database, table).await;
    }
    let service = catalog.start(&database).service().await;
    // One bytea whose text is beyond a jsonb's bound, and one such text; a partition's trigger has no bound of its own.
    for (table, bytes, characters) in [("plain", 140_000_000, 270_000_000), ("parts", 20_000_000, 20_000_000)] {
        database.run(&format!("insert into {table} (id) values (9)")).await;
        export(&service, "full", table, "a").await;
        database
            .run(&format!(
                "insert into {table} (id, b) values (1, convert_to(repeat('x', {bytes}), 'UTF8'));
                 insert into {table} (id, t) values (2, repeat('x', {characters})), (3, repeat('y', 20000000));
                 insert into {table} (id, t, j, n, f, d, a, i) values
                   (4, E'\\x01\\x7f\"\\\\,()', '{{\"a\": \"\\u0000\", \"n\": 1e200000}}', ('1e' || 131071)::numeric, '-0', 'infinity',
                    '[-5:-4]={{1,null}}', '178000000 years')"
            ))
            .await;
        let text = async |column: &str| {
            database.one::<String>(&format!("select concat({column}) from {table} where id = 4")).await
        };
        let (t, j) = (text("t").await, text("j").await);
        // In one statement: one that is too large takes no other row's image away.
        database
            .run(&format!("delete from {table} where id in (1, 2, 4); update {table} set id = 13 where id = 3"))
            .await;
        let images =
            "select count(image) from cdc_export.change_log where operation = 'D' and table_oid = '{}'::regclass";
        assert_eq!(database.one::<i64>(&images.replace("{}", table)).await, 1, "{table}");
        database.run(&format!("update {table} set t = null where id = 13")).await;
        let job = export(&service, "delta", table, "a").await;
        assert_eq!((&job["rowsExported"], &job["keyOnlyDeletes"]), (&json!(5), &json!(3)), "{job}");
        let mut rows = Csv::read(&service.path(&job)).rows;
        rows.sort();
        let empty = |row: &[String]| row[2..].iter().all(String::is_empty);
        assert!(empty(&rows[0]) && empty(&rows[1]) && empty(&rows[2]), "{table}: keys alone");
        assert_eq!((&*rows[3][1], &rows[3][3], &rows[3][4]), ("4", &t, &j));
        assert_eq!((&*rows[3][6], &*rows[3][7], &*rows[3][8]), ("-0", "infinity", "[-5:-4]={1,NULL}"));
        assert_eq!(rows[4][..2], ["UPDATE", "13"]);
        // What is known is not counted.
        database.run(&format!("delete from {table}")).await;
        assert_eq!(export(&service, "delta", table, "a").await["keyOnlyDeletes"], 0);
    }
    service.stop().await;
}
