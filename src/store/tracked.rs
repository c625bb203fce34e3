//! Which datasets `track` has seen: of the others no consumer can have an export.

use crate::dataset::Dataset;
use crate::store::{Error, Store};

/// What `track` has made of a dataset's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// There is no such table.
    NoTable,
    /// Nobody ran `track` for it, or `untrack` came since.
    Untracked,
    /// Its changes are captured by another key than the one that the catalog names.
    ByAnotherKey,
    /// Its changes were captured when somebody last looked. Triggers that are gone since are the guard's to find.
    Tracked,
}

impl Store {
    /// What `track` has made of a dataset's table.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn tracking(&self, dataset: &Dataset) -> Result<Tracking, Error> {
        let Dataset { table, key, .. } = dataset;
        let mut conn = self.connection().await?;
        let found: (bool, bool, Option<Vec<String>>) = sqlx::query_as(
            "-- store.tracked.tracking
             select c.oid is not null, k.table_name is not null, k.key
             from (select cdc_export.table_of_role(
               case when $1::text is null then format('%I', $2::text) else format('%I.%I', $1, $2) end) as oid) t
             left join pg_class c on c.oid = t.oid
             left join pg_namespace n on n.oid = c.relnamespace
             left join cdc_export.tracked k on k.schema_name = n.nspname and k.table_name = c.relname",
        )
        .bind(&table.schema)
        .bind(&table.name)
        .fetch_one(conn.get())
        .await?;
        conn.give_back();
        Ok(match found {
            (false, ..) => Tracking::NoTable,
            (_, false, _) => Tracking::Untracked,
            (_, _, Some(logged)) if key.as_ref().is_some_and(|key| *key != logged) => Tracking::ByAnotherKey,
            _ => Tracking::Tracked,
        })
    }
}
