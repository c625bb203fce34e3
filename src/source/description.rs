//! What a dataset's table looks like now, for who asks.

use std::sync::Arc;

use sqlx::AssertSqlSafe;

use crate::connection::failure::SqlFailure;
use crate::dataset::fault::Faults;
use crate::dataset::{Capture, Column, Dataset, Description, Table, TableSchema};
use crate::source::captured::capture;
use crate::source::quote::relation;
use crate::source::role_path::widen;
use crate::source::select::Select;
use crate::source::{Error, Source, lag, rights, table_schema};

#[derive(Default, sqlx_macros::FromRow)]
struct TableStatus {
    rows: Option<f32>,
    bytes: i64,
    captured: bool,
    logged_key: Option<Vec<String>>,
    mute_role: Option<String>,
}

impl Source {
    /// Returns true if an index begins with this column of a table.
    pub async fn has_index(&self, table: &Table, column: &Column) -> Result<bool, Error> {
        let failed = Error::of(table);
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        lag::has_index(&mut conn, &relation(table), &column.name).await.map_err(&failed)
    }

    /// Counts the rows that the schema's column `deleted` leaves out of full exports; `None` if that takes longer than a statement of the
    /// pool may.
    pub async fn count_deleted(&self, dataset: &Dataset, schema: &TableSchema) -> Result<Option<i64>, Error> {
        let failed = Error::of(&dataset.table);
        let select = Select { dataset, schema };
        let Some(deleted) = select.deleted(true) else { return Ok(Some(0)) };
        let mut tx = self.pool.begin().await.map_err(&failed)?;
        let widen = format!("-- source.description.path\n {}", widen(dataset, schema));
        sqlx::raw_sql(AssertSqlSafe(widen)).execute(&mut *tx).await.map_err(&failed)?;
        let count =
            format!("-- source.description.deleted\n select count(*) from {} u where {deleted}", select.table());
        match sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut *tx).await {
            Err(cause) if SqlFailure::of(&cause) == SqlFailure::Cancelled => Ok(None),
            counted => counted.map(Some).map_err(&failed),
        }
    }

    /// What a dataset's table looks like now.
    pub async fn describe(&self, dataset: &Arc<Dataset>) -> Result<Description, Error> {
        let failed = Error::of(&dataset.table);
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        let seen = rights::look(&mut conn, dataset).await.map_err(&failed)?;
        let schema = match table_schema::introspect_seen(&mut conn, dataset, &seen).await {
            Ok(schema) => Ok(schema),
            Err(table_schema::Error::Faults(faults)) => Err(faults),
            Err(table_schema::Error::Hidden(_)) => Err(Faults::default()),
            Err(error) => return Err(error.into()),
        };
        let status: Option<TableStatus> = sqlx::query_as(concat!(
            "-- source.description.describe
             select
               parts.rows, parts.bytes::bigint as bytes, capture.captured, capture.logged_key, capture.mute_role
             from pg_class t join pg_namespace n on n.oid = t.relnamespace
             cross join lateral ",
            capture!(),
            " capture
             -- As they were last counted: their sizes are known only to who waits for a lock on them.
             cross join lateral (
               -- A table that was never counted has -1. In Postgres 13 it has 0 rows in 0 pages, as an empty one does.
               select sum(p.reltuples)
                   filter (where p.reltuples >= 0 and (p.relpages > 0 or current_setting('server_version_num')::int >= 140000)) as rows,
                 coalesce(sum(p.relpages + coalesce(x.relpages, 0)), 0) * current_setting('block_size')::bigint as bytes
               from pg_class p left join pg_class x on x.oid = p.reltoastrelid
               where case t.relkind when 'p' then p.oid in (select relid from pg_partition_tree(t.oid) where isleaf)
                 else p.oid = t.oid end) parts
             where t.oid = to_regclass($1)"
        ))
        .bind(seen.table.as_ref().map(relation))
        .fetch_optional(&mut *conn)
        .await
        .map_err(&failed)?;
        let TableStatus { rows, bytes, captured, logged_key, mute_role } = status.unwrap_or_default();
        let logs_it = logged_key.is_some_and(|key| schema.as_ref().map_or(true, |schema| schema.has_key(&key)));
        Ok(Description {
            dataset: Arc::clone(dataset),
            schema,
            unreadable: seen.unreadable,
            rows: rows.map(|rows| rows as u64),
            bytes: bytes.unsigned_abs(),
            captured: captured && logs_it || dataset.capture != Capture::Triggers,
            mute_role: mute_role.filter(|_| dataset.capture == Capture::Triggers),
        })
    }
}
