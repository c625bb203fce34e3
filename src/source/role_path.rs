//! Sets the search_path of a transaction that reads a dataset's table.

use std::fmt::Display;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::connection::failure::{SqlFailure, sqlstate};
use crate::dataset::fault::Fault;
use crate::dataset::{Dataset, TableSchema};
use crate::source::quote;
use crate::source::select::Select;

/// The longest time that a check waits for a lock on a table. The transaction that has the lock may wait for our
/// caller.
pub(super) const LOCK_TIMEOUT: &str = "2s";

/// The error of `cdc_export.widen_search_path`, whose message is Postgres's.
pub(super) const CANT_PLAN: &str = "CE002";

/// Returns the statements that set a reader's search_path. A filter is evaluated under the role's own search_path.
pub(super) fn of_reader(dataset: &Dataset, schema: &TableSchema) -> String {
    let own = match dataset.filter {
        Some(_) => "; select set_config('search_path', current_setting('cdc_export.role_path'), true)",
        None => "",
    };
    format!("{}{own}", widen(dataset, schema))
}

/// Returns the statement that appends the role's search_path if a read of the table can't be planned without it.
/// Afterwards the transaction may run only statements that name the schema of each function, because other roles may
/// have functions in that path.
pub(super) fn widen(dataset: &Dataset, schema: &TableSchema) -> String {
    let (from, table) = (Select { dataset, schema }.table(), quote::relation(&schema.table));
    format!("select cdc_export.widen_search_path({}, to_regclass({}))", quote::literal(&from), quote::literal(&table))
}

/// Returns a fault if Postgres can't plan a read of a dataset's table. Returns none if somebody holds a lock on the
/// table.
pub(crate) async fn check(
    conn: &mut PgConnection,
    dataset: &Dataset,
    schema: &TableSchema,
) -> Result<Option<Fault>, sqlx::Error> {
    let mut tx = conn.begin().await?;
    let widen = format!(
        "-- source.role_path.check
         set local lock_timeout = '{LOCK_TIMEOUT}';
         {}",
        widen(dataset, schema)
    );
    let planned = sqlx::raw_sql(AssertSqlSafe(widen)).execute(&mut *tx).await;
    tx.rollback().await?;
    match planned {
        Ok(_) => Ok(None),
        Err(cause) if sqlstate(&cause) == CANT_PLAN => {
            let why = cant_plan(&dataset.table, &cause);
            Ok(Some(Fault { dataset: dataset.name.clone(), member: "table", item: None, why }))
        }
        Err(cause) if SqlFailure::of(&cause) == SqlFailure::LockTimeout => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// Says why Postgres can't plan a read of the table.
pub(super) fn cant_plan(table: impl Display, cause: &sqlx::Error) -> String {
    let message = cause.as_database_error().map(|error| error.message().to_owned()).unwrap_or_default();
    format!(
        "Postgres can't read `{table}`, because a function of one of its indexes, statistics or constraints fails: {message}"
    )
}
