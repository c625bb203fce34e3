//! Partitions that came since a consumer's position.
//!
//! A delta sends the current row of each logged key. So the rows of a new partition are all sent if each of their keys
//! was logged since the position, for any reason. A partition that was created empty and then written to, or that took
//! rows from another partition, needs no full export.

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::quote;
use crate::role_path::widen;
use crate::select::logged;
use crate::snapshot::SnapshotTable;
use crate::trigger::key_text;
use crate::watermark::PgSnapshot;
use pg_session::SEARCH_PATH;
use pg_session::table_name::Table;

/// Returns true if the partitions that came to a table have rows that were not logged since the snapshot `saved`, that
/// of the position. Reads all their rows, as the export would if they were logged. If the role may not read a partition
/// by itself, reads the whole table once.
pub(super) async fn have_unlogged_rows(
    reader: &mut PgConnection,
    table: &SnapshotTable,
    saved: &PgSnapshot,
) -> Result<bool, sqlx::Error> {
    // The reader may have the role's own search_path, in which others may have functions. The last rollback restores
    // that path.
    let path = format!("-- source.arrivals.path\n savepoint arrivals; set local search_path = {SEARCH_PATH}");
    sqlx::raw_sql(AssertSqlSafe(path)).execute(&mut *reader).await?;
    let SnapshotTable { dataset, arrived, schema, new_position, .. } = table;
    let leaves: Vec<(Oid, String, String, bool)> = sqlx::query_as(
        "-- source.arrivals.leaves
         select c.oid, n.nspname::text, c.relname::text,
           coalesce(has_table_privilege(c.oid, 'select') and has_schema_privilege(n.oid, 'usage') and not row_security_active(c.oid), false)
         from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = any ($1) and c.relkind <> 'p'",
    )
    .bind(arrived)
    .fetch_all(&mut *reader)
    .await?;
    // The right to the table is enough to read a partition through it, but not to read it alone.
    let (mut through, mut places) = (Vec::new(), Vec::new());
    for (leaf, schema, name, is_readable) in leaves {
        if is_readable {
            places.push((Some(Table { schema: Some(schema), name }), vec![leaf]));
        } else {
            through.push(leaf);
        }
    }
    if !through.is_empty() {
        places.push((None, through));
    }
    let key: Vec<_> = schema.key.iter().map(|part| part.column.name.to_string()).collect();
    let key = key_text("u", &key);
    let mut have = false;
    for (partition, leaves) in places {
        let from = quote::relation(partition.as_ref().unwrap_or(&schema.table));
        let logged = logged("$1", "$2::pg_catalog.text::pg_catalog.pg_snapshot");
        let has = format!(
            "-- source.arrivals.has_unlogged_rows
             with logged as materialized (select distinct key from cdc_export.change_log where {logged})
             select exists (
               select from {from} u
               where u.tableoid operator(pg_catalog.=) any ($3)
                 and not {key} collate pg_catalog.\"C\" operator(pg_catalog.=) any (select key from logged))"
        );
        let has =
            sqlx::query_scalar(AssertSqlSafe(has)).bind(Oid(new_position.table.table_oid)).bind(saved).bind(leaves);
        let widen = widen(dataset, schema, partition.as_ref());
        let begin = format!("-- source.arrivals.begin\n savepoint place; {widen}");
        sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *reader).await?;
        have = has.fetch_one(&mut *reader).await?;
        // Releases the locks of the partition and its indexes.
        sqlx::raw_sql("-- source.arrivals.end\n rollback to savepoint place; release savepoint place")
            .execute(&mut *reader)
            .await?;
        if have {
            break;
        }
    }
    sqlx::raw_sql("-- source.arrivals.path_again\n rollback to savepoint arrivals").execute(reader).await?;
    Ok(have)
}
