//! Descriptions of datasets' tables as they are now.

use std::sync::{Arc, LazyLock};

use sqlx::{AssertSqlSafe, PgConnection};

use crate::captured::CAPTURE;
use crate::placed::by_table;
use crate::quote::relation;
use crate::rights::TableAccess;
use crate::{Error, Source, capture, lag, rights, table_schema};
use cdc_dataset::{Capture, Dataset, Description, Faults, TableColumn, TableSchema};
use pg_session::statement::with_pieces;
use pg_session::table_name::Table;

static DESCRIBE: LazyLock<String> =
    LazyLock::new(|| with_pieces(include_str!("description.sql"), &[("captured.sql", CAPTURE)]));

/// The size of a table, and its capture as [`CAPTURE`] describes it.
#[derive(Default, sqlx_macros::FromRow)]
pub(super) struct TableStatus {
    /// The place of the table in `$1`.
    place: i64,
    rows: Option<f32>,
    bytes: i64,
    pub(super) captured: bool,
    pub(super) logged_key: Option<Vec<String>>,
    mute_role: Option<String>,
    is_log_altered: bool,
    /// Why no triggers can capture all changes of the table, which has none, and what helps.
    pub(super) uncapturable: Option<String>,
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
        self.with(table, async |conn| lag::has_index(conn, table, &column.name).await).await
    }

    /// Describes the tables of these datasets as they are now. Takes as many statements for many as for few.
    pub async fn describe(&self, datasets: &[Arc<Dataset>]) -> Result<Vec<Description>, Error> {
        let described = self.with("pg_catalog", async |conn| {
            let all: Vec<_> = datasets.iter().map(|dataset| &**dataset).collect();
            let accesses = rights::read_accesses(conn, &all).await?;
            let tables: Vec<_> = all.into_iter().zip(&accesses).collect();
            let schemas = table_schema::introspect_all(conn, &tables).await?;
            let statuses = read_statuses(conn, &accesses.iter().collect::<Vec<_>>()).await?;
            let read = datasets.iter().zip(accesses).zip(schemas).zip(statuses);
            Ok(read.map(|(((dataset, access), schema), status)| describe(dataset, access, schema, status)).collect())
        });
        described.await
    }
}

fn describe(
    dataset: &Arc<Dataset>,
    access: TableAccess,
    schema: Result<TableSchema, Faults>,
    status: TableStatus,
) -> Description {
    let is_hidden = access.hidden().is_some();
    let schema = match (schema, access.unpopulated) {
        (Ok(_), Some(fault)) => Err(Faults(vec![fault])),
        // `unreadable` has the fault.
        (Err(_), _) if is_hidden => Err(Faults::default()),
        (schema, _) => schema,
    };
    let log_obstacle = status.log_obstacle().filter(|_| dataset.capture == Capture::Triggers);
    let TableStatus { rows, bytes, captured, logged_key, uncapturable, .. } = status;
    let logs_it = logged_key.is_some_and(|key| schema.as_ref().map_or(true, |schema| schema.has_key(&key)));
    Description {
        dataset: Arc::clone(dataset),
        schema,
        unreadable: access.unreadable,
        rows: rows.map(|rows| rows as u64),
        bytes: bytes.unsigned_abs(),
        captured: captured && logs_it || dataset.capture != Capture::Triggers,
        log_obstacle,
        why_untracked: uncapturable.filter(|_| dataset.capture == Capture::Triggers),
    }
}
