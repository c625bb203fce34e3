//! Removes the capture of a table or of all tables, and finds the tables whose capture no dataset needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::{PgConnection, PgPool};

use crate::capture::tracking::{TableState, locate, lock, remove};
use crate::capture::waiting::{Queue, Wait};
use crate::capture::{Error, Triggers, functions};
use crate::rights::{self, TableAccess};
use cdc_dataset::{Capture, Dataset};
use pg_session::table_name::Table;

impl Triggers<'_> {
    /// Removes the triggers from the tables of these datasets, which can't be exported from then on. Each table has a
    /// transaction of its own. Returns for each dataset the error if its triggers could not be removed: there is no
    /// such table, another dataset needs its triggers, or the role lacks the right.
    pub async fn untrack(
        &self,
        datasets: &[Arc<Dataset>],
        all: &[Arc<Dataset>],
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let others = all.iter().filter(|other| other.capture == Capture::Triggers);
        let others: Vec<_> = others.filter(|other| datasets.iter().all(|it| it.name != other.name)).collect();
        let all: Vec<_> = datasets.iter().chain(others.iter().copied()).map(|dataset| &**dataset).collect();
        let accesses = rights::read_accesses(&mut *self.0.acquire().await?, &all).await?;
        let (own, of_others) = accesses.split_at(datasets.len());
        let check = |(dataset, access): (&Arc<Dataset>, &TableAccess)| {
            let is_same = |other: &TableAccess| other.table.is_some() && other.table == access.table;
            match others.iter().zip(of_others).find(|(_, other)| is_same(other)) {
                Some((other, _)) => Err(Error::Shared { dataset: dataset.name.clone(), other: other.name.clone() }),
                None => Ok(dataset.table.clone()),
            }
        };
        let checked: Vec<_> = datasets.iter().zip(own).map(check).collect();
        let mut untracked = untrack_each(self.0, checked.iter().flatten()).await.into_iter();
        let done = |table: Result<_, _>| table.and_then(|_| untracked.next().expect("a table has a result").map(drop));
        Ok(checked.into_iter().map(done).collect())
    }

    /// Removes the triggers from a table, with or without a dataset. Returns false if the table had no triggers.
    pub async fn untrack_table(&self, table: &Table) -> Result<bool, Error> {
        untrack_each(self.0, [table]).await.pop().expect("a table has a result")
    }

    /// Removes the triggers from all tables that have any. Returns these tables, each with the error of the failed
    /// step. Each table has transactions of its own. Then notes the tables whose triggers were removed before.
    pub async fn untrack_all(&self) -> Result<Vec<(Table, Result<(), Error>)>, Error> {
        let pool = self.0;
        let tables: Vec<(String, String)> =
            sqlx::query_as(include_str!("untracking/with_triggers.sql")).fetch_all(pool).await?;
        let tables: Vec<_> = tables.into_iter().map(|(schema, name)| Table { schema: Some(schema), name }).collect();
        let untracked = untrack_each(pool, &tables).await;
        let done: Vec<_> = tables.into_iter().zip(untracked.into_iter().map(|it| it.map(drop))).collect();
        if done.iter().all(|(_, untracked)| untracked.is_ok()) {
            sqlx::query(include_str!("untracking/unlist.sql")).execute(pool).await?;
            functions::remove_unused(&mut *pool.acquire().await?, None).await?;
        }
        Ok(done)
    }
}

/// Removes the triggers from these tables, and notes that. Tries again while some are busy. Returns the results in the
/// tables' order.
async fn untrack_each<'t>(pool: &PgPool, tables: impl IntoIterator<Item = &'t Table>) -> Vec<Result<bool, Error>> {
    let mut queue = Queue::of(tables.into_iter().enumerate());
    let mut done = BTreeMap::new();
    while let Some(mut turn) = queue.next().await {
        let untracked = try_untrack(pool, turn.item.1, &mut turn.wait).await;
        done.extend(queue.settle(turn, untracked).map(|((place, _), untracked)| (place, untracked)));
    }
    done.into_values().collect()
}

async fn try_untrack(pool: &PgPool, table: &Table, wait: &mut Wait) -> Result<bool, Error> {
    let mut tx = pool.begin().await?;
    let state = locate(&mut tx, table).await?;
    if let Some(parent) = state.parent {
        return Err(Error::Partition { table: table.to_string(), parent });
    }
    state.require_owner(table)?;
    let state = lock(&mut tx, table, &state, None, wait).await?;
    let is_any = remove(&mut tx, table, &state, None).await?;
    // Writes to no table of the service, so that it succeeds on a disk without a free block.
    tx.commit().await?;
    // The row of `tracked` keeps every process from putting the triggers back before this.
    match note(pool, &state).await {
        Ok(()) => Ok(is_any),
        Err(cause) => Err(Error::NotNoted { table: table.to_string(), cause }),
    }
}

/// Notes that somebody has removed the capture of a table, so that no process tracks it by itself.
async fn note(pool: &PgPool, state: &TableState) -> Result<(), sqlx::Error> {
    let noted = sqlx::query(
        "-- source.capture.untrack
         with unlisted as (delete from cdc_export.tracked where schema_name = $1 and table_name = $2)
         insert into cdc_export.untracked (schema_name, table_name) values ($1, $2) on conflict do nothing",
    );
    noted.bind(&state.schema_name).bind(&state.table_name).execute(pool).await.map(drop)
}

/// Returns the tables whose changes are logged although no dataset needs them, and which no pattern matches. `left_out`
/// are tables that a pattern matches.
pub(crate) async fn without_dataset(
    conn: &mut PgConnection,
    datasets: &[Arc<Dataset>],
    left_out: &[&Table],
) -> Result<Vec<Table>, sqlx::Error> {
    let (schemas, names): (Vec<_>, Vec<_>) = datasets
        .iter()
        .filter(|dataset| dataset.capture == Capture::Triggers)
        .map(|dataset| &dataset.table)
        .chain(left_out.iter().copied())
        .map(|table| (table.schema.clone(), table.name.clone()))
        .unzip();
    let found: Vec<(String, String)> = sqlx::query_as(include_str!("untracking/without_dataset.sql"))
        .bind(schemas)
        .bind(names)
        .fetch_all(conn)
        .await?;
    Ok(found.into_iter().map(|(schema, name)| Table { schema: Some(schema), name }).collect())
}
