//! The owners of a dataset's table and its partitions. Reading a table may run code of any of them.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::quote::relation;
use crate::relation_locks;
use cdc_dataset::{Dataset, Fault, Owners};
use pg_session::statement::with_pieces;
use pg_session::table_name::Table;

pub(super) const MEMBERS: (&str, &str) = ("owners/members.sql", include_str!("owners/members.sql"));

/// Locks the tables of datasets that don't trust each owner, in a transaction. Returns true if all their owners are
/// trusted: then they stay so, and statements on the tables may be planned.
pub(crate) async fn lock_trusted(tx: &mut PgConnection, tables: &[(&Dataset, &Table)]) -> Result<bool, sqlx::Error> {
    let bound: Vec<_> = tables.iter().filter(|(dataset, _)| dataset.owners != Owners::Any).copied().collect();
    if bound.is_empty() {
        return Ok(true);
    }
    // A pattern has plain and partitioned tables.
    let lock =
        format!("-- source.owners.lock\n {}", relation_locks::locks(bound.iter().map(|(_, table)| (*table, None))));
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *tx).await?;
    Ok(untrusted(tx, &bound).await?.is_empty())
}

/// Returns a fault for each dataset whose table has an owner whom the dataset doesn't trust. Reads nothing but the
/// system catalogs. In a transaction that has a lock on the table, its owners stay so.
pub(crate) async fn untrusted(
    conn: &mut PgConnection,
    tables: &[(&Dataset, &Table)],
) -> Result<Vec<Fault>, sqlx::Error> {
    let bound: Vec<_> = tables.iter().filter(|(dataset, _)| dataset.owners != Owners::Any).collect();
    if bound.is_empty() {
        return Ok(Vec::new());
    }
    let named = |dataset: &Dataset| match &dataset.owners {
        Owners::Any | Owners::Default => None,
        Owners::Named(names) => Some(Json(names.clone())),
    };
    let statement = with_pieces(include_str!("owners/untrusted.sql"), &[MEMBERS]);
    let found: Vec<(i64, String)> = sqlx::query_as(AssertSqlSafe(statement))
        .bind(bound.iter().map(|(_, table)| relation(table)).collect::<Vec<_>>())
        .bind(bound.iter().map(|(dataset, _)| named(dataset)).collect::<Vec<_>>())
        .fetch_all(conn)
        .await?;
    let fault = |(place, owner): (i64, String)| {
        let (dataset, _) = bound[place as usize - 1];
        let why = format!("it or a partition of it belongs to {owner}, who is none of the pattern's owners");
        Fault::of(dataset, "table", why)
    };
    Ok(found.into_iter().map(fault).collect())
}
