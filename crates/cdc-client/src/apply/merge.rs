//! Merges the rows of a delta or an incremental export from the stage into the table.

use sqlx::PgConnection;

use crate::apply::statement::run;
use crate::apply::table::{TargetTable, operation};
use crate::apply::{Changes, During, Error};
use cdc_manifest::Chained;
use pg_session::quoted;

/// Deletes the rows that the export deletes, then inserts or updates the others. `columns` are those of the table.
pub(super) async fn merge(
    conn: &mut PgConnection,
    target_table: &TargetTable,
    export: &Chained,
    columns: &[String],
) -> Result<Changes, Error> {
    let (table, stage) = (&target_table.name, target_table.stage_table());
    let key: Vec<_> = export.key.iter().map(|name| quoted(name)).collect();
    let equal = |name: &String| format!("t.{name} operator(pg_catalog.=) s.{name}");
    let same_key = key.iter().map(equal).collect::<Vec<_>>().join(" and ");
    let (mut deleted, mut live_rows) = (0, String::new());
    if let Some(column) = operation(export) {
        let is = |sign: &str| format!("s.{} operator(pg_catalog.{sign}) 'DELETE'", quoted(&column.name));
        // A key may get another text that is equal, such as 1.00 for 1.0. The old text is deleted, and the row stays.
        let delete = format!(
            "delete from only {table} t where exists (select from {stage} s where {same_key} and {})
             and not exists (select from {stage} s where {same_key} and {})",
            is("="),
            is("<>")
        );
        deleted = run(conn, "merge.delete", &delete).await.during("to delete rows")?;
        live_rows = format!(" where {}", is("<>"));
    }
    let names: Vec<_> = columns.iter().map(|name| quoted(name)).collect();
    let of = |alias: &str| names.iter().map(|name| format!("{alias}.{name}")).collect::<Vec<_>>().join(", ");
    // Updates the columns of the key too, because equal values may have different texts.
    let set = names.iter().map(|name| format!("{name} = excluded.{name}")).collect::<Vec<_>>().join(", ");
    // Compares records bytewise, because some types, such as json, have no equality operator.
    let upsert = format!(
        "insert into {table} as t ({}) select {} from {stage} s{live_rows}
         on conflict ({}) do update set {set}
         where row({})::pg_catalog.record operator(pg_catalog.*<>) row({})::pg_catalog.record",
        names.join(", "),
        of("s"),
        key.join(", "),
        of("t"),
        of("excluded")
    );
    let written = run(conn, "merge.upsert", &upsert).await.during("the rows")?;
    Ok(Changes { written, deleted })
}
