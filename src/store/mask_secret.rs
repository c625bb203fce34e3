//! The fingerprint of the secret of masks that the database accepts, and the columns that were masked.

use crate::store::{Error, Store};

impl Store {
    /// Forgets which columns exports of a dataset have masked. Returns their number.
    pub async fn forget_masks(&self, dataset: &str) -> Result<u64, Error> {
        let statement = sqlx::query(
            "-- store.mask_secret.forget_masks
             delete from cdc_export.masked_columns where dataset = $1",
        );
        self.execute(statement.bind(dataset)).await
    }

    /// Returns true if the database accepts the secret with this fingerprint. It accepts the first one that it gets.
    pub async fn accepts_mask_secret(&self, fingerprint: &str) -> Result<bool, Error> {
        let statement = sqlx::query_scalar(
            "-- store.mask_secret.accept
             insert into cdc_export.mask_secret as m (fingerprint) values ($1)
             on conflict (is_only) do update set fingerprint = m.fingerprint
             returning m.fingerprint = $1",
        )
        .bind(fingerprint);
        self.with(async |conn| statement.fetch_one(conn).await).await
    }

    /// Accepts the secret with this fingerprint in place of the one before. Returns false if it was accepted already.
    pub async fn rotate_mask_secret(&self, fingerprint: &str) -> Result<bool, Error> {
        let statement = sqlx::query(
            "-- store.mask_secret.rotate
             insert into cdc_export.mask_secret as m (fingerprint) values ($1)
             on conflict (is_only) do update set fingerprint = excluded.fingerprint, accepted_at = clock_timestamp()
             where m.fingerprint <> excluded.fingerprint",
        )
        .bind(fingerprint);
        Ok(self.with(async |conn| statement.execute(conn).await).await?.rows_affected() > 0)
    }
}
