//! Where a reader's names are looked up: not only in our own schemas if the operator's filter or the table's indexes need more.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::connection::failure::sqlstate;
use crate::dataset::fault::Fault;
use crate::dataset::{Dataset, TableSchema};
use crate::source::quote;
use crate::source::select::Select;

/// How long the check waits for a lock on the table: the transaction that has the lock may wait for our caller.
pub(super) const LOCK_TIMEOUT: &str = "2s";

/// The error of `cdc_export.find_what_indexes_call`, whose message is Postgres's.
pub(super) const CANT_PLAN: &str = "CE002";

/// The statement that lets a transaction find what the reads of a dataset's table name.
///
/// An operator's filter means what it means in the role's own search_path. What the functions of indexes name is looked for there only if
/// it isn't found otherwise: others may have functions there.
pub(super) fn statement(dataset: &Dataset, schema: &TableSchema) -> String {
    if dataset.filter.is_some() {
        return "select set_config('search_path', current_setting('cdc_export.role_path'), true)".to_owned();
    }
    find_what_indexes_call(dataset, schema)
}

/// The same without the filter.
pub(super) fn find_what_indexes_call(dataset: &Dataset, schema: &TableSchema) -> String {
    let (from, table) = (Select { dataset, schema }.table(), quote::relation(&schema.table));
    format!(
        "select cdc_export.find_what_indexes_call({}, to_regclass({}))",
        quote::literal(&from),
        quote::literal(&table)
    )
}

/// Returns a fault if Postgres can't plan a read of a dataset's table.
pub(crate) async fn check(
    conn: &mut PgConnection,
    dataset: &Dataset,
    schema: &TableSchema,
) -> Result<Option<Fault>, sqlx::Error> {
    let mut tx = conn.begin().await?;
    let find = format!(
        "-- source.role_path.check
         set local lock_timeout = '{LOCK_TIMEOUT}';
         {}",
        find_what_indexes_call(dataset, schema)
    );
    let found = sqlx::raw_sql(AssertSqlSafe(find)).execute(&mut *tx).await;
    tx.rollback().await?;
    match found {
        Ok(_) => Ok(None),
        Err(cause) if sqlstate(&cause) == CANT_PLAN => {
            let why = cant_plan(&dataset.table, &cause);
            Ok(Some(Fault { dataset: dataset.name.clone(), member: "table", item: None, why }))
        }
        Err(cause) => Err(cause),
    }
}

/// Says why Postgres can't plan a read of the table.
pub(super) fn cant_plan(table: impl std::fmt::Display, cause: &sqlx::Error) -> String {
    let told = cause.as_database_error().map(|told| told.message().to_owned()).unwrap_or_default();
    format!(
        "Postgres can't read `{table}`, because a function that one of its indexes or statistics calls fails: {told}"
    )
}
