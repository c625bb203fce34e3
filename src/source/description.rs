//! Descriptions of datasets' tables as they are now.

use std::sync::{Arc, LazyLock};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::connection::failure::SqlFailure;
use crate::connection::statement::with_pieces;
use crate::dataset::fault::Faults;
use crate::dataset::{Capture, Dataset, Description, Table, TableColumn, TableSchema};
use crate::source::capture;
use crate::source::captured::CAPTURE;
use crate::source::placed::by_table;
use crate::source::quote::relation;
use crate::source::rights::TableAccess;
use crate::source::role_path::widen;
use crate::source::select::Select;
use crate::source::{Error, Source, lag, rights, table_schema};

static DESCRIBE: LazyLock<String> =
    LazyLock::new(|| with_pieces(include_str!("description.sql"), &[("captured.sql", CAPTURE)]));

/// The size of a table, and its capture as [`CAPTURE`] describes it.
#[derive(Default, sqlx_macros::FromRow)]
pub(super) struct TableStatus {
    /// The place of the table among those that were asked for.
    place: i64,
    rows: Option<f32>,
    bytes: i64,
    pub(super) captured: bool,
    pub(super) logged_key: Option<Vec<String>>,
    mute_role: Option<String>,
    is_log_altered: bool,
}

impl TableStatus {
    /// Returns why the table's triggers can't write to the change log, and what helps.
    pub(super) fn log_obstacle(&self) -> Option<String> {
        if self.is_log_altered {
            return Some(capture::Error::LogAltered.to_string());
        }
        let role = self.mute_role.as_ref()?;
        Some(format!(
            "writes to its table fail, because the triggers' role {role} may not write to the change log: `grant usage on schema \
             cdc_export to {role}; grant insert on cdc_export.change_log to {role}`"
        ))
    }
}

/// Reads the status of each dataset's table. A table that is not there has no rows and is not captured.
pub(super) async fn read_statuses(
    conn: &mut PgConnection,
    accesses: &[&TableAccess],
) -> Result<Vec<TableStatus>, sqlx::Error> {
    let names: Vec<_> = accesses.iter().map(|access| access.table.as_ref().map(relation)).collect();
    let statuses: Vec<TableStatus> =
        sqlx::query_as(AssertSqlSafe(DESCRIBE.as_str())).bind(names).fetch_all(conn).await?;
    let of_tables = by_table(accesses.len(), statuses, |status| status.place);
    Ok(of_tables.into_iter().map(|mut status| status.pop().unwrap_or_default()).collect())
}

impl Source {
    /// Returns true if an index begins with this column of a table.
    pub async fn has_index(&self, table: &Table, column: &TableColumn) -> Result<bool, Error> {
        let failed = Error::from_sql(table);
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        lag::has_index(&mut conn, table, &column.name).await.map_err(&failed)
    }

    /// Counts the rows that the schema's column `deleted` leaves out of full exports; `None` if that takes longer than
    /// a statement of the pool may.
    pub async fn count_deleted(&self, dataset: &Dataset, schema: &TableSchema) -> Result<Option<i64>, Error> {
        let failed = Error::from_sql(&dataset.table);
        let select = Select::new(dataset, schema);
        let Some(deleted) = select.deleted(true) else { return Ok(Some(0)) };
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        let mut tx = conn.begin().await.map_err(&failed)?;
        let widen = format!("-- source.description.path\n {}", widen(dataset, schema, None));
        sqlx::raw_sql(AssertSqlSafe(widen)).execute(&mut *tx).await.map_err(&failed)?;
        let count =
            format!("-- source.description.deleted\n select count(*) from {} u where {deleted}", select.table());
        match sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut *tx).await {
            Err(cause) if SqlFailure::of(&cause) == SqlFailure::Cancelled => Ok(None),
            counted => counted.map(Some).map_err(&failed),
        }
    }

    /// Describes the tables of these datasets as they are now. Takes as many statements for many as for few.
    pub async fn describe(&self, datasets: &[Arc<Dataset>]) -> Result<Vec<Description>, Error> {
        let failed = Error::from_sql("pg_catalog");
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        let all: Vec<_> = datasets.iter().map(|dataset| &**dataset).collect();
        let accesses = rights::read_accesses(&mut conn, &all).await.map_err(&failed)?;
        let visible: Vec<_> = all.into_iter().zip(&accesses).collect();
        let schemas = table_schema::introspect_all(&mut conn, &visible).await.map_err(&failed)?;
        let found: Vec<_> = accesses.iter().collect();
        let statuses = read_statuses(&mut conn, &found).await.map_err(&failed)?;
        let read = datasets.iter().zip(accesses).zip(schemas).zip(statuses);
        read.map(|(((dataset, access), schema), status)| describe(dataset, access, schema, status)).collect()
    }
}

fn describe(
    dataset: &Arc<Dataset>,
    access: TableAccess,
    schema: Result<TableSchema, table_schema::Error>,
    status: TableStatus,
) -> Result<Description, Error> {
    let schema = match schema {
        Ok(schema) => access.unpopulated.map_or(Ok(schema), |fault| Err(Faults(vec![fault]))),
        Err(table_schema::Error::Faults(faults)) => Err(faults),
        Err(table_schema::Error::Hidden(_)) => Err(Faults::default()),
        Err(error) => return Err(error.into()),
    };
    let log_obstacle = status.log_obstacle().filter(|_| dataset.capture == Capture::Triggers);
    let TableStatus { rows, bytes, captured, logged_key, .. } = status;
    let logs_it = logged_key.is_some_and(|key| schema.as_ref().map_or(true, |schema| schema.has_key(&key)));
    Ok(Description {
        dataset: Arc::clone(dataset),
        schema,
        unreadable: access.unreadable,
        rows: rows.map(|rows| rows as u64),
        bytes: bytes.unsigned_abs(),
        captured: captured && logs_it || dataset.capture != Capture::Triggers,
        log_obstacle,
        why_untracked: None,
    })
}
