//! The datasets that `track` has seen. No consumer can have an export of another one.

use crate::dataset::{Capture, Dataset};
use crate::job::ConsumerId;
use crate::store::{Error, Store};

/// The state in which `track` left a dataset's table.
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

/// A reason why a table can't be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// There is no such table.
    NoTable,
    /// Its changes are not captured by the key that the catalog names.
    NotTracked,
}

impl Tracking {
    /// Returns why a dataset's table can't be exported for a consumer. An ad-hoc export needs no triggers, since it has
    /// no position.
    pub fn obstacle(self, dataset: &Dataset, consumer: Option<&ConsumerId>) -> Option<Obstacle> {
        let needs_triggers = consumer.is_some() && dataset.capture == Capture::Triggers;
        match self {
            Tracking::NoTable => Some(Obstacle::NoTable),
            Tracking::Untracked | Tracking::ByAnotherKey => needs_triggers.then_some(Obstacle::NotTracked),
            Tracking::Tracked => None,
        }
    }
}

/// The state of a dataset's table.
#[derive(Clone, Copy, Debug)]
pub struct TableCheck {
    /// The state in which `track` left it.
    pub tracking: Tracking,
    /// True if the role may read all its rows. `source` says which right is missing.
    pub is_readable: bool,
}

impl Store {
    /// Returns the state of a dataset's table. Takes no lock on it.
    ///
    /// # Errors
    /// [`Error::Denied`] if the role may not use the table's schema; if the database fails.
    pub async fn check_table(&self, dataset: &Dataset) -> Result<TableCheck, Error> {
        let Dataset { table, key, .. } = dataset;
        let statement = sqlx::query_as(
            "-- store.tracked.check_table
             select c.oid is not null, k.table_name is not null, k.key, cdc_export.primary_key(c.oid),
               coalesce(has_table_privilege(c.oid, 'select') and not row_security_active(c.oid), true)
             from (select cdc_export.table_of_role(
               case when $1::text is null then format('%I', $2::text) else format('%I.%I', $1, $2) end) as oid) t
             left join pg_class c on c.oid = t.oid
             left join pg_namespace n on n.oid = c.relnamespace
             left join cdc_export.tracked k on k.schema_name = n.nspname and k.table_name = c.relname",
        )
        .bind(&table.schema)
        .bind(&table.name);
        let (is_there, is_tracked, logged, primary_key, is_readable): (
            bool,
            bool,
            Option<Vec<String>>,
            Vec<String>,
            bool,
        ) = self.with(async |conn| statement.fetch_one(conn).await).await?;
        // Without a primary key there is nothing to compare: the source refuses such a table.
        let key = key.as_ref().or(Some(&primary_key).filter(|primary_key| !primary_key.is_empty()));
        let is_another = |logged| key.is_some_and(|key| *key != logged);
        let tracking = match (is_there, is_tracked) {
            (false, _) => Tracking::NoTable,
            (true, false) => Tracking::Untracked,
            (true, true) if logged.is_some_and(is_another) => Tracking::ByAnotherKey,
            (true, true) => Tracking::Tracked,
        };
        Ok(TableCheck { tracking, is_readable })
    }
}
