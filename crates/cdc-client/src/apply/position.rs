//! Reads and writes the position of each target table: the table `cdc_apply.positions` in the target database.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::types::{Json, Uuid};

use crate::apply::statement::{run, run_unless_exists};
use crate::apply::table::{TargetColumn, TargetTable, target_columns};
use crate::apply::{During, Error, POSITIONS_SCHEMA, TargetSettings, ownership};
use cdc_manifest::{ConsumerId, Manifest, ManifestColumn, ManifestSource};
use pg_session::table_name::Table;

/// The default schema of a table.
const SCHEMA: &str = "public";

const ACTION: &str = "the table cdc_apply.positions";

/// The last export that was applied to a table.
#[derive(Debug, sqlx_macros::FromRow)]
pub struct TargetPosition {
    /// The schema and name of the table.
    target: String,
    pub job: Uuid,
    number: i64,
    /// The digest of the export. The manifest of the next export names it as its predecessor.
    pub digest: String,
    consumer: String,
    dataset: String,
    /// The database that the table's rows are from.
    #[sqlx(json)]
    pub source: ManifestSource,
    pub(super) oid: i64,
    #[sqlx(json)]
    pub(super) details: Details,
}

/// The state of the table after that export.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Details {
    /// The export's key, which is the table's primary key.
    pub(super) key: Vec<String>,
    /// The export's columns that are columns of the table.
    pub(super) columns: Vec<ManifestColumn>,
    /// The same columns of the table, by name.
    pub(super) table: BTreeMap<String, TargetColumn>,
}

impl TargetPosition {
    pub fn number(&self) -> u64 {
        self.number.unsigned_abs()
    }

    pub(super) fn table(&self) -> Result<Table, Error> {
        let not_a_name = |_| Error::refused("table_name", format!("{} is not a table name", self.target));
        self.target.parse().map_err(not_a_name)
    }

    pub(super) fn require_lane(&self, consumer: &ConsumerId, dataset: &str) -> Result<(), Error> {
        let TargetPosition { target, consumer: consumer_had, dataset: dataset_had, .. } = self;
        if (consumer_had.as_str(), dataset_had.as_str()) == (consumer.as_str(), dataset) {
            return Ok(());
        }
        let why = format!(
            "{target} has exports of {dataset_had} of the consumer {consumer_had}: leave {dataset} out (--exclude), or \
             let --table name another table for it"
        );
        Err(Error::refused("another_lane", why))
    }

    pub(super) fn require_source(&self, source: &ManifestSource) -> Result<(), Error> {
        let TargetPosition { target, source: from, .. } = self;
        if from != source {
            let why = format!(
                "the rows of {target} are from the database {} of cluster {}, and the export is from the database {} of cluster {}: \
                 --adopt goes on from a service by a full export, or --table names another table",
                from.database, from.cluster, source.database, source.cluster
            );
            return Err(Error::refused("another_source", why));
        }
        Ok(())
    }
}

pub(super) fn with_schema(table: Table) -> Table {
    Table { schema: table.schema.or_else(|| Some(SCHEMA.to_owned())), ..table }
}

/// Returns the key of a table in `cdc_apply.positions`: its schema and name.
pub(super) fn target_name(table: &Table) -> String {
    with_schema(table.clone()).to_string()
}

/// Returns true if the table of the positions exists. Returns an error if it isn't the role's own plain table.
async fn exists(conn: &mut PgConnection) -> Result<bool, Error> {
    let table = Table { schema: Some(POSITIONS_SCHEMA.to_owned()), name: "positions".to_owned() };
    let found = ownership::find(conn, &table).await?;
    found.iter().try_for_each(|found| found.require_plain(&table))?;
    Ok(found.is_some())
}

/// Locks the table of the positions in a mode until the end of the transaction, so that nobody can replace it. Returns
/// false if it doesn't exist.
pub(super) async fn lock_table(conn: &mut PgConnection, mode: &str) -> Result<bool, Error> {
    if !exists(conn).await? {
        return Ok(false);
    }
    run(conn, "position.lock_table", &format!("lock table cdc_apply.positions in {mode} mode")).await.during(ACTION)?;
    exists(conn).await
}

/// Locks the position of the table until the end of the transaction, so that only this transaction applies to the
/// table. The table of the positions has to be locked. Returns the position, or `None` if no export was applied to the
/// table.
///
/// It locks the position's row, because every role that may connect can take an advisory lock. A missing row is
/// inserted, which makes others wait as well. The transaction completes it by [`write`], or rolls it back.
pub(super) async fn lock(
    conn: &mut PgConnection,
    target: &str,
    consumer: &ConsumerId,
    dataset: &str,
) -> Result<Option<TargetPosition>, Error> {
    loop {
        let found = sqlx::query_as(
            "-- apply.position.lock
             select target, job, number, digest, consumer, dataset, source, oid, details from cdc_apply.positions
             where target = $1 for update",
        );
        if let Some(found) = found.bind(target).fetch_optional(&mut *conn).await.during(ACTION)? {
            return Ok(Some(found));
        }
        let inserted = sqlx::query(
            "-- apply.position.insert
             insert into cdc_apply.positions (target, consumer, dataset, source, oid, job, number, digest, details, applied_at)
             values ($1, $2, $3, '{}', 0, '00000000-0000-0000-0000-000000000000', 0, '', '{}', clock_timestamp())
             on conflict (target) do nothing",
        );
        let inserted = inserted.bind(target).bind(consumer.as_str()).bind(dataset).execute(&mut *conn).await;
        // Otherwise another transaction has committed the row since, and it can be locked.
        if inserted.during(ACTION)?.rows_affected() == 1 {
            return Ok(None);
        }
    }
}

pub(super) async fn create_table(conn: &mut PgConnection) -> Result<(), Error> {
    if exists(conn).await? {
        return Ok(());
    }
    let create = "-- apply.position.create
         -- `if not exists` asks for the right to make it, even where it is there.
         do $$ begin
           if to_regnamespace('cdc_apply') is null then
             create schema cdc_apply;
           end if;
         end $$;
         create table if not exists cdc_apply.positions (
           target text collate \"C\" primary key,
           consumer text not null,
           dataset text not null,
           source jsonb not null,
           oid bigint not null,
           job uuid not null,
           number bigint not null,
           digest text not null,
           details jsonb not null,
           applied_at timestamptz not null
         );
         comment on table cdc_apply.positions is 'The last export that cdc-export apply has brought to each table';";
    run_unless_exists(conn, create.to_owned()).await.during("to make the table cdc_apply.positions")
}

/// Returns true if a table is in the schema, or if no schema is named.
fn is_in(schema: Option<&str>, target: &str) -> bool {
    let of_table = |table: Table| table.schema.as_deref() == schema;
    schema.is_none() || target.parse().is_ok_and(of_table)
}

/// Lists the datasets of a consumer that have tables, in the schema if one is named. Needs a transaction.
pub(super) async fn datasets(
    conn: &mut PgConnection,
    consumer: &ConsumerId,
    schema: Option<&str>,
) -> Result<BTreeSet<String>, Error> {
    if !lock_table(conn, "access share").await? {
        return Ok(BTreeSet::new());
    }
    let found = sqlx::query_as(
        "-- apply.position.datasets
         select target, dataset from cdc_apply.positions where consumer = $1",
    );
    let found: Vec<(String, String)> = found.bind(consumer.as_str()).fetch_all(conn).await.during(ACTION)?;
    Ok(found.into_iter().filter(|(target, _)| is_in(schema, target)).map(|(_, dataset)| dataset).collect())
}

/// Reads the position of a table, or that of the only table with exports of a lane. Returns an error if there are
/// several. Needs a transaction.
pub(super) async fn read(
    conn: &mut PgConnection,
    TargetSettings { table, schema, .. }: &TargetSettings,
    consumer: &ConsumerId,
    dataset: &str,
) -> Result<Option<TargetPosition>, Error> {
    if !lock_table(conn, "access share").await? {
        return Ok(None);
    }
    let found = sqlx::query_as(
        "-- apply.position.read
         select target, job, number, digest, consumer, dataset, source, oid, details from cdc_apply.positions
         where target = $1 or $1::text is null and consumer = $2 and dataset = $3",
    );
    let target = table.as_ref().map(target_name);
    let found = found.bind(target).bind(consumer.as_str()).bind(dataset).fetch_all(conn).await;
    let mut positions: Vec<TargetPosition> = found.during(ACTION)?;
    positions.retain(|found| is_in(schema.as_deref(), &found.target));
    if positions.len() > 1 {
        let why = "several tables have these exports: --table names one, or --target-schema its schema";
        return Err(Error::refused("table_name", why));
    }
    Ok(positions.pop())
}

/// Records an export as the last one that was applied to the table.
pub(super) async fn write(
    conn: &mut PgConnection,
    target: &str,
    manifest: &Manifest,
    target_table: &TargetTable,
    settings: &TargetSettings,
) -> Result<(), Error> {
    let export = &manifest.export;
    let job: Uuid =
        export.job.id().parse().map_err(|_| Error::refused("changed", "the manifest has an invalid export id"))?;
    let number = i64::try_from(manifest.number)
        .map_err(|_| Error::refused("changed", "the manifest has an invalid export number"))?;
    let columns: Vec<_> = target_columns(export, settings).cloned().collect();
    let in_table = |column: &ManifestColumn| target_table.columns.get_key_value(&column.name);
    let table = columns.iter().filter_map(in_table).map(|(name, column)| (name.clone(), column.clone())).collect();
    sqlx::query(
        "-- apply.position.write
         update cdc_apply.positions set source = $2, oid = $3, job = $4, number = $5, digest = $6, details = $7,
           applied_at = clock_timestamp()
         where target = $1",
    )
    .bind(target)
    .bind(Json(&export.source))
    .bind(target_table.oid)
    .bind(job)
    .bind(number)
    .bind(&manifest.digest)
    .bind(Json(Details { key: export.key.clone(), columns, table }))
    .execute(conn)
    .await
    .map(drop)
    .during(ACTION)
}
