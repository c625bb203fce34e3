//! A catalogue against the live tables: everything in it that can't be.

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::dataset::catalog::{Catalog, Fault, Faults};
use crate::dataset::{Capture, Dataset, Table};
use crate::source::quote::relation;
use crate::source::shape;

/// Holds a whole catalogue against the live tables.
///
/// # Errors
/// If the database fails. What doesn't fit is the result.
pub async fn check(pool: &PgPool, catalog: &Catalog) -> Result<Faults, sqlx::Error> {
    let mut conn = pool.acquire().await?;
    let (mut faults, mut seen) = (Vec::new(), Vec::<(Oid, String, Vec<String>)>::new());
    for dataset in catalog.iter() {
        let shape = match shape::look(&mut conn, dataset).await {
            Ok(shape) => shape,
            Err(shape::Error::Faults(found)) => {
                faults.extend(found.0);
                continue;
            }
            Err(shape::Error::Sql(cause)) => return Err(cause),
        };
        faults.extend(check_filter(&mut conn, dataset, &shape.table).await?);
        if dataset.capture != Capture::Triggers {
            continue;
        }
        let oid = sqlx::query_scalar("-- source.catalog.oid\n select cdc_export.table_of_role($1)::oid");
        let oid: Oid = oid.bind(relation(&dataset.table)).fetch_one(&mut *conn).await?;
        let key: Vec<_> = shape.key.iter().map(|part| part.column.name.to_string()).collect();
        // The triggers of a table log one key.
        if let Some((_, other, _)) = seen.iter().find(|(table, _, its)| *table == oid && *its != key) {
            let why = format!("`{}` is captured for `{other}` too, which has another key", dataset.table);
            faults.push(Fault { dataset: dataset.name.clone(), member: "key", item: None, why });
        }
        seen.push((oid, dataset.name.clone(), key));
    }
    Ok(Faults(faults))
}

/// A filter has to be SQL of the row alone: what depends on the time, or on other tables, changes without a change of the row,
/// which nobody would ever see. An index may have just such conditions, so Postgres is asked by making one.
async fn check_filter(conn: &mut PgConnection, dataset: &Dataset, table: &Table) -> Result<Option<Fault>, sqlx::Error> {
    let Some(filter) = &dataset.filter else { return Ok(None) };
    let fault = |why| Fault { dataset: dataset.name.clone(), member: "filter", item: None, why };
    // Constants once Postgres has read them, and others tomorrow.
    let words = ["'now'", "'today'", "'tomorrow'", "'yesterday'"];
    if let Some(word) = words.into_iter().find(|word| filter.to_lowercase().contains(word)) {
        return Ok(Some(fault(format!("it has to be told from the row alone, and {word} is another time each day"))));
    }
    let mut tx = conn.begin().await?;
    // In an array too: a bracket that closes ours there would have closed it in an export's condition.
    let index = format!(
        "-- source.catalog.filter
         create temporary table cdc_export_filter (like {table}) on commit drop;
         select set_config('search_path', current_setting('cdc_export.role_path') || ', pg_temp', true);
         create index on cdc_export_filter ((1)) where (\n{filter}\n);
         create index on cdc_export_filter ((1)) where (array[\n{filter}\n])[1]",
        table = relation(table),
    );
    let made = sqlx::raw_sql(AssertSqlSafe(index)).execute(&mut *tx).await;
    tx.rollback().await?;
    let Err(cause) = made else { return Ok(None) };
    let Some(told) = cause.as_database_error() else { return Err(cause) };
    let why = match told.code().as_deref() {
        // The role may make no temporary table: the filter is tried at the first export.
        Some("42501") => return Ok(None),
        Some("42P17" | "0A000") => format!("it has to be told from the row alone ({})", told.message()),
        _ => format!("Postgres doesn't take it as a condition: {}", told.message()),
    };
    Ok(Some(fault(why)))
}
