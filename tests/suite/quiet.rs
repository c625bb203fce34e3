//! Deletions that their transaction keeps quiet about: no delta tells of them, and each consumer's next export counts
//! them once.

use serde_json::json;

use crate::catalog::{Catalog, ended, export};
use crate::harness::{Csv, Database};

#[tokio::test]
async fn what_is_kept_quiet_is_deletions_of_ones_own_transaction() {
    let database = Database::new_with(
        "create table t (k int primary key, n int); insert into t select n, 1 from generate_series(1, 9) n",
    )
    .await;
    database.run("create table child (k int references t on delete cascade, n int, primary key (k)); insert into child values (1, 1), (2, 1)").await;
    let catalog =
        Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\n[[dataset]]\nname = \"child\"\ntable = \"child\"\n");
    let service = catalog.serving(&database, &["t", "child"]).await;
    for dataset in ["t", "child"] {
        export(&service, "full", dataset, "a").await;
    }
    let deletes =
        "set local cdc_export.quiet = 'delete'; delete from t where k in (1, 5); update t set k = 30 where k = 3";
    let quiet = database.open(deletes).await;
    // Another session's deletion, while that transaction is open; and the same session's next one.
    database.run("delete from t where k = 2").await;
    quiet.commit().await.unwrap();
    database.run("begin; set local cdc_export.quiet = 'update'; delete from t where k = 4; commit").await;
    let job = export(&service, "delta", "t", "a").await;
    let mut rows: Vec<_> = Csv::read(&service.path(&job)).rows.iter().map(|row| row[..2].join(" ")).collect();
    rows.sort_unstable();
    assert_eq!(rows, ["DELETE 2", "DELETE 3", "DELETE 4", "UPDATE 30"]);
    assert_eq!(job["quietDeletes"], 2, "{job}");
    let job = export(&service, "delta", "child", "a").await;
    assert_eq!((&job["rowsExported"], &job["quietDeletes"]), (&json!(1), &json!(1)), "a cascade is as quiet: {job}");

    database.run("begin; set local cdc_export.quiet = 'delete'; truncate t, child; commit").await;
    let job = ended(&service, "/exports/delta", Some("a"), json!({"dataset": "t"})).await;
    assert_eq!(job["continuity"], "truncated", "{job}");
    let job = export(&service, "full", "t", "a").await;
    assert_eq!(job["quietDeletes"], 0, "counted before: {job}");
}
