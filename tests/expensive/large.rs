//! Values of hundreds of megabytes.

use serde_json::json;

use crate::catalog::{Catalog, export};
use crate::harness::{Csv, Database};

/// Whatever a row holds, its owner deletes it and changes its key; a large one doesn't take his time and memory for an
/// image either.
#[tokio::test]
async fn what_a_row_holds_fails_no_statement_of_its_owner() {
    let columns = "b bytea, t text, j json, n numeric, f float8, d date, a int[], i interval";
    let database = Database::new_with(&format!(
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
}
