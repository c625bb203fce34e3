//! Checks that a dataset's table exists, is tracked and is readable. No consumer can export a dataset that was never
//! tracked.

use crate::store::{Error, Store};
use cdc_dataset::{Capture, Dataset};
use cdc_manifest::ConsumerId;

/// The state of a dataset's table, as recorded by `track`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    NoTable,
    /// Nobody ran `track` for the table, or somebody ran `untrack` since.
    Untracked,
    /// The triggers capture the changes of the table by another key than the one in the catalog.
    ByAnotherKey,
    /// The triggers captured the changes of the table at the last check. The guard detects triggers that were removed
    /// since.
    Tracked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    NoTable,
    /// The triggers don't capture the changes of the table by the key in the catalog.
    NotTracked,
}

impl Tracking {
    /// An ad-hoc export needs no triggers, because it has no position.
    pub fn obstacle(self, dataset: &Dataset, consumer: Option<&ConsumerId>) -> Option<Obstacle> {
        let needs_triggers = consumer.is_some() && dataset.capture == Capture::Triggers;
        match self {
            Tracking::NoTable => Some(Obstacle::NoTable),
            Tracking::Untracked | Tracking::ByAnotherKey => needs_triggers.then_some(Obstacle::NotTracked),
            Tracking::Tracked => None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct TableCheck {
    pub tracking: Tracking,
    /// True if the role may read all rows of the table. `source` reports the missing right.
    pub is_readable: bool,
    /// Why no triggers can capture all changes of the table, which has none, and what helps.
    pub uncapturable: Option<String>,
}

#[derive(sqlx_macros::FromRow)]
struct TableRow {
    is_there: bool,
    is_tracked: bool,
    /// The key that the triggers log.
    logged: Option<Vec<String>>,
    primary_key: Vec<String>,
    is_readable: bool,
    uncapturable: Option<String>,
}

impl Store {
    /// Checks a dataset's table, without a lock on it.
    ///
    /// # Errors
    /// [`Error::Denied`] if the role may not use the schema of the table.
    pub async fn check_table(&self, dataset: &Dataset) -> Result<TableCheck, Error> {
        let Dataset { table, key, .. } = dataset;
        let statement = sqlx::query_as(
            "-- store.tracked.check_table
             select c.oid is not null as is_there, k.table_name is not null as is_tracked, k.key as logged,
               cdc_export.primary_key(c.oid) as primary_key,
               coalesce(has_table_privilege(c.oid, 'select') and not row_security_active(c.oid), true) as is_readable,
               case when k.table_name is null then cdc_export.uncapturable(c.oid) end as uncapturable
             from (select cdc_export.table_of_role(concat_ws('.', quote_ident($1), quote_ident($2))) as oid) t
             left join pg_class c on c.oid = t.oid left join pg_namespace n on n.oid = c.relnamespace
             -- By the collation of the index: a name has another one.
             left join cdc_export.tracked k on k.schema_name = n.nspname::text collate \"default\"
               and k.table_name = c.relname::text collate \"default\"",
        )
        .bind(&table.schema)
        .bind(&table.name);
        let TableRow { is_there, is_tracked, logged, primary_key, is_readable, uncapturable } =
            self.with(async |conn| statement.fetch_one(conn).await).await?;
        // A table without a primary key has no key to compare. `source` rejects such a table.
        let key = key.as_ref().or(Some(&primary_key).filter(|primary_key| !primary_key.is_empty()));
        let is_another = |logged| key.is_some_and(|key| *key != logged);
        let tracking = match (is_there, is_tracked) {
            (false, _) => Tracking::NoTable,
            (true, false) => Tracking::Untracked,
            (true, true) if logged.is_some_and(is_another) => Tracking::ByAnotherKey,
            (true, true) => Tracking::Tracked,
        };
        Ok(TableCheck { tracking, is_readable, uncapturable })
    }
}
