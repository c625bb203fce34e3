//! Pages of long lists are read from an index, in its order.

use sqlx::PgConnection;

use crate::store::{Error, Store};

impl Store {
    /// Runs `call` in a transaction in which Postgres reads from an index, in the index's order, whatever the planner's estimates: a page
    /// of a long list is never had by sorting the list.
    pub(super) async fn in_index_order<T, E>(
        &self,
        call: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, Error>
    where
        Error: From<E>,
    {
        let read = self.transaction::<T, Error>(async |tx| {
            sqlx::raw_sql("-- store.index_order\n set local enable_seqscan = off; set local enable_bitmapscan = off")
                .execute(&mut *tx)
                .await?;
            Ok(call(tx).await?)
        });
        read.await
    }
}
