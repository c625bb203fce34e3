//! Descriptions of datasets' tables as they are now.

use std::sync::{Arc, LazyLock};

use sqlx::{AssertSqlSafe, Connection};

use crate::connection::failure::SqlFailure;
use crate::connection::statement::with_pieces;
use crate::dataset::fault::Faults;
use crate::dataset::{Capture, Dataset, Description, Table, TableColumn, TableSchema};
use crate::source::captured::CAPTURE;
use crate::source::quote::relation;
use crate::source::role_path::widen;
use crate::source::select::Select;
use crate::source::{Error, Source, lag, rights, table_schema};

static DESCRIBE: LazyLock<String> =
    LazyLock::new(|| with_pieces(include_str!("description.sql"), &[("captured.sql", CAPTURE)]));

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
    pub async fn has_index(&self, table: &Table, column: &TableColumn) -> Result<bool, Error> {
        let failed = Error::from_sql(table);
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        lag::has_index(&mut conn, &relation(table), &column.name).await.map_err(&failed)
    }

    /// Counts the rows that the schema's column `deleted` leaves out of full exports; `None` if that takes longer than
    /// a statement of the pool may.
    pub async fn count_deleted(&self, dataset: &Dataset, schema: &TableSchema) -> Result<Option<i64>, Error> {
        let failed = Error::from_sql(&dataset.table);
        let select = Select { dataset, schema };
        let Some(deleted) = select.deleted(true) else { return Ok(Some(0)) };
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        let mut tx = conn.begin().await.map_err(&failed)?;
        let widen = format!("-- source.description.path\n {}", widen(dataset, schema));
        sqlx::raw_sql(AssertSqlSafe(widen)).execute(&mut *tx).await.map_err(&failed)?;
        let count =
            format!("-- source.description.deleted\n select count(*) from {} u where {deleted}", select.table());
        match sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut *tx).await {
            Err(cause) if SqlFailure::of(&cause) == SqlFailure::Cancelled => Ok(None),
            counted => counted.map(Some).map_err(&failed),
        }
    }

    /// Describes a dataset's table as it is now.
    pub async fn describe(&self, dataset: &Arc<Dataset>) -> Result<Description, Error> {
        let failed = Error::from_sql(&dataset.table);
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        let access = rights::read_access(&mut conn, dataset).await.map_err(&failed)?;
        let schema = match table_schema::introspect_visible(&mut conn, dataset, &access).await {
            Ok(schema) => Ok(schema),
            Err(table_schema::Error::Faults(faults)) => Err(faults),
            Err(table_schema::Error::Hidden(_)) => Err(Faults::default()),
            Err(error) => return Err(error.into()),
        };
        let status: Option<TableStatus> = sqlx::query_as(AssertSqlSafe(DESCRIBE.as_str()))
            .bind(access.table.as_ref().map(relation))
            .fetch_optional(&mut *conn)
            .await
            .map_err(&failed)?;
        let TableStatus { rows, bytes, captured, logged_key, mute_role } = status.unwrap_or_default();
        let logs_it = logged_key.is_some_and(|key| schema.as_ref().map_or(true, |schema| schema.has_key(&key)));
        Ok(Description {
            dataset: Arc::clone(dataset),
            schema,
            unreadable: access.unreadable,
            rows: rows.map(|rows| rows as u64),
            bytes: bytes.unsigned_abs(),
            captured: captured && logs_it || dataset.capture != Capture::Triggers,
            mute_role: mute_role.filter(|_| dataset.capture == Capture::Triggers),
        })
    }
}
