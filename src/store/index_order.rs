//! Pages of long lists are read from an index, in its order.

use sqlx::PgConnection;

use crate::store::Error;

/// Has Postgres read what this transaction asks for from an index, in the index's order, whatever the planner's estimates: a page of a
/// long list is never had by sorting the list.
pub(super) async fn read_in_index_order(tx: &mut PgConnection) -> Result<(), Error> {
    sqlx::raw_sql("-- store.index_order\n set local enable_seqscan = off; set local enable_bitmapscan = off")
        .execute(tx)
        .await?;
    Ok(())
}
