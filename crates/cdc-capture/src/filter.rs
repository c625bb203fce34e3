//! Checks of an operator's filter: a row alone must decide it. Finds the columns that it reads and the functions that
//! it calls.

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::quote::{quoted, relation};
use crate::relation_locks::NO_WAIT;
use cdc_dataset::{Dataset, Fault};
use pg_session::failure::{SqlFailure, sqlstate};
use pg_session::table_name::Table;

/// A filter has to be SQL of the row alone: what depends on the time, or on other tables, changes without a change of
/// the row, which nobody would ever see. An index may have just such conditions, so Postgres is asked by making one.
pub(crate) async fn check(
    conn: &mut PgConnection,
    dataset: &Dataset,
    table: &Table,
) -> Result<Option<Fault>, sqlx::Error> {
    let Some(filter) = &dataset.filter else { return Ok(None) };
    let mut tx = conn.begin().await?;
    // In an array too: a bracket that closes ours there would have closed it in an export's condition.
    let index = format!(
        "-- source.filter.check
         {NO_WAIT};
         create temporary table cdc_export_filter (like {table}) on commit drop;
         select set_config('search_path', current_setting('cdc_export.role_path') || ', pg_temp', true);
         create index on cdc_export_filter ((1)) where (\n{filter}\n);
         create index on cdc_export_filter ((1)) where (array[\n{filter}\n])[1]",
        table = relation(table),
    );
    let made = sqlx::raw_sql(AssertSqlSafe(index)).execute(&mut *tx).await;
    tx.rollback().await?;
    let Err(cause) = made else { return Ok(None) };
    let Some(reported) = cause.as_database_error() else { return Err(cause) };
    let why = match (SqlFailure::of(&cause), &*sqlstate(&cause)) {
        // The role may make no temporary table: the filter is tried at the first export. A function raised an error
        // (class P0): of the filter, so exports fail, or of an event trigger that forbids DDL.
        (SqlFailure::Denied, _) => return Ok(None),
        (_, code) if code.starts_with("P0") => return Ok(None),
        (SqlFailure::LockTimeout | SqlFailure::Conflict, _) => return Err(cause),
        (_, "42P17" | "0A000") => format!("it has to be told from the row alone ({})", reported.message()),
        _ => format!("Postgres doesn't take it as a condition: {}", reported.message()),
    };
    Ok(Some(Fault::of(dataset, "filter", why)))
}

/// Returns the filter as Postgres reads it now, with the constants that it makes of words such as `'today'`. Returns
/// `None` if it refuses the filter.
pub(crate) async fn fold(conn: &mut PgConnection, text: &str, table: &Table) -> Result<Option<String>, sqlx::Error> {
    let mut tx = conn.begin().await?;
    let path = "select set_config('search_path', current_setting('cdc_export.role_path'), true)";
    sqlx::raw_sql(AssertSqlSafe(format!("-- source.filter.path\n {NO_WAIT}; {path}"))).execute(&mut *tx).await?;
    // The condition is an output column, because where it stands in a plan of the read depends on the plan.
    let explain = format!(
        "-- source.filter.folded
         explain (verbose, costs off, format json)
         with data as materialized (select * from {}) select (\n{text}\n) from data",
        relation(table)
    );
    let plan: Result<Json<Value>, _> = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(&mut *tx).await;
    tx.rollback().await?;
    match plan.as_ref().map_err(SqlFailure::of) {
        Err(SqlFailure::Refused | SqlFailure::NotThere | SqlFailure::Denied) => Ok(None),
        _ => plan.map(|Json(plan)| plan.pointer("/0/Plan/Output/0").map(Value::to_string)),
    }
}

/// Returns true if a filter may ask for this column. To say so of one column too many is no harm.
pub(crate) fn mentions(filter: &str, column: &str) -> bool {
    let (text, name) = (filter.to_lowercase(), column.to_lowercase());
    let mut words = text.split(|c: char| c.is_ascii() && !c.is_ascii_alphanumeric() && c != '_' && c != '$');
    // Where a name may be written by the numbers of its characters, it may be any.
    text.contains("u&\"") || text.contains(&quoted(&name)) || words.any(|word| word == name)
}

/// For each filter and its table, a hash of what the filter may call: the functions that are not Postgres's own and
/// whose names are in its text or in the text of one of these, two deep, those of its operators and of casts too, and
/// the path that they are found by. By their names, since what a name means to Postgres is told only where something is
/// made of it, which takes a transaction id; one too many makes a full export that wasn't needed.
pub(crate) async fn hashes_of_called(
    conn: &mut PgConnection,
    filters: &[(&str, &Table)],
) -> Result<Vec<String>, sqlx::Error> {
    if filters.is_empty() {
        return Ok(Vec::new());
    }
    let (filters, tables): (Vec<_>, Vec<_>) = filters.iter().map(|(filter, table)| (*filter, relation(table))).unzip();
    sqlx::query_scalar(include_str!("filter/called.sql")).bind(filters).bind(tables).fetch_all(conn).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_mentions_its_columns() {
        for filter in ["tenant = 7", "x and TENANT>7", "\"tenant\"=7", "(t.tenant)", "U&\"\\0074enant\" = 7"] {
            assert!(mentions(filter, "tenant"), "{filter}");
        }
        for filter in ["tenants = 7", "my_tenant = 7", "'ten' || 'ant'"] {
            assert!(!mentions(filter, "tenant"), "{filter}");
        }
        assert!(mentions("\"a \"\"b\"\"\" > 1", "a \"b\"") && mentions("übung > 1", "Übung"));
    }
}
