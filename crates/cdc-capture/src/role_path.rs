//! Sets the search_path of a transaction that reads a dataset's table.

use std::fmt::Display;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::relation_locks::{self, NO_WAIT};
use crate::select::Select;
use crate::{owners, quote};
use cdc_dataset::{Dataset, Fault, RelationKind, TableSchema};
use pg_session::failure::sqlstate;
use pg_session::table_name::Table;

/// The error of `cdc_export.widen_search_path`, whose message is Postgres's.
pub(super) const CANT_PLAN: &str = "CE002";

/// Returns the statements that set a reader's search_path. A filter is evaluated under the role's own search_path, and
/// so are the functions that a view calls.
pub(super) fn of_reader(dataset: &Dataset, schema: &TableSchema, leaf: Option<&Table>) -> String {
    let is_own = dataset.filter.is_some() || schema.relation == RelationKind::View;
    let own = match is_own {
        true => "; select set_config('search_path', current_setting('cdc_export.role_path'), true)",
        false => "",
    };
    format!("{}{own}", widen(dataset, schema, leaf))
}

/// Returns the statement that appends the role's search_path if a read of the table can't be planned without it.
/// Afterwards the transaction may run only statements that name the schema of each function, because other roles may
/// have functions in that path.
pub(super) fn widen(dataset: &Dataset, schema: &TableSchema, leaf: Option<&Table>) -> String {
    let select = Select { leaf, ..Select::new(dataset, schema) };
    let (from, table) = (select.table(), quote::relation(leaf.unwrap_or(&schema.table)));
    format!("select cdc_export.widen_search_path({}, to_regclass({}))", quote::literal(&from), quote::literal(&table))
}

/// The number of tables that are checked in one transaction, which holds a lock on each of them.
const CHECKED_TOGETHER: usize = 50;

/// Returns the faults of the datasets whose tables Postgres can't plan a read of. Leaves out a table on which somebody
/// holds a lock.
pub(crate) async fn check(
    conn: &mut PgConnection,
    datasets: &[(&Dataset, &TableSchema)],
) -> Result<Vec<Fault>, sqlx::Error> {
    let mut faults = Vec::new();
    for together in datasets.chunks(CHECKED_TOGETHER) {
        if together.len() > 1 && try_plans(conn, together).await?.is_none() {
            continue;
        }
        for &(dataset, schema) in together {
            let Some(cause) = try_plans(conn, &[(dataset, schema)]).await? else { continue };
            if sqlstate(&cause) == CANT_PLAN {
                faults.push(Fault::of(dataset, "table", cant_plan(&dataset.table, &cause)));
            } else if !relation_locks::is_conflict(&cause) {
                return Err(cause);
            }
        }
    }
    Ok(faults)
}

/// Plans a read of each table, in a transaction that is rolled back, and returns the error if one can't be planned. A
/// search_path that one of the tables needs is also there for the others.
async fn try_plans(
    conn: &mut PgConnection,
    datasets: &[(&Dataset, &TableSchema)],
) -> Result<Option<sqlx::Error>, sqlx::Error> {
    let mut tx = conn.begin().await?;
    let widen: Vec<_> = datasets.iter().map(|(dataset, schema)| widen(dataset, schema, None)).collect();
    let widen = format!(
        "-- source.role_path.check
         {NO_WAIT};
         {}",
        widen.join(";\n")
    );
    let located: Vec<_> = datasets.iter().map(|(dataset, schema)| (*dataset, &schema.table)).collect();
    let failed = match owners::lock_trusted(&mut tx, &located).await {
        Ok(true) => sqlx::raw_sql(AssertSqlSafe(widen)).execute(&mut *tx).await.err(),
        // A table that another role has put in the place of one is not planned. The next check reports it.
        Ok(false) => None,
        Err(cause) => Some(cause),
    };
    tx.rollback().await?;
    Ok(failed)
}

pub(super) fn cant_plan(table: impl Display, cause: &sqlx::Error) -> String {
    let message = cause.as_database_error().map(|error| error.message().to_owned()).unwrap_or_default();
    format!(
        "Postgres can't read `{table}`, because a function of one of its indexes, statistics or constraints fails: {message}"
    )
}
