//! The position of each table of a target, in the target itself: `cdc_apply.positions`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::types::{Json, Uuid};

use crate::apply::table::TargetTable;
use crate::apply::{Doing, Error};
use crate::dataset::Table;
use crate::job::ConsumerId;
use crate::manifest::{Manifest, ManifestColumn, ManifestSource};

/// The schema of a table that is named without one.
const SCHEMA: &str = "public";

const DEED: &str = "the table cdc_apply.positions";

/// The last export that a table has got.
#[derive(Debug, sqlx_macros::FromRow)]
pub struct TargetPosition {
    /// The table, as the positions call it.
    target: String,
    /// The export's id.
    pub job: Uuid,
    number: i64,
    /// The digest that the next export names as the one before.
    pub digest: String,
    consumer: String,
    dataset: String,
    /// The database that the table's rows are from.
    #[sqlx(json)]
    pub source: ManifestSource,
    #[sqlx(json)]
    pub(super) details: Details,
}

/// The table as that export left it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Details {
    pub(super) key: Vec<String>,
    pub(super) columns: Vec<ManifestColumn>,
    /// The column that marks deleted rows.
    pub(super) deleted: Option<String>,
    /// The table's number in the catalog.
    pub(super) oid: i64,
    /// The numbers of its columns, by their names.
    pub(super) numbers: BTreeMap<String, i16>,
}

impl TargetPosition {
    /// The export's place in its lane.
    pub fn number(&self) -> u64 {
        self.number.unsigned_abs()
    }

    /// The name of the table.
    pub(super) fn table(&self) -> Result<Table, Error> {
        let not_a_name = |_| Error::refused("table_unknown", format!("{} is no table's name", self.target));
        self.target.parse().map_err(not_a_name)
    }

    /// Refuses another lane.
    pub(super) fn require_lane(&self, consumer: &ConsumerId, dataset: &str) -> Result<(), Error> {
        let TargetPosition { target, consumer: of, dataset: and, .. } = self;
        if (of.as_str(), and.as_str()) == (consumer.as_str(), dataset) {
            return Ok(());
        }
        let why = format!(
            "{target} gets the exports of {and} of the consumer {of}: --table names another table, or remove the table and its row of \
             cdc_apply.positions"
        );
        Err(Error::refused("another_lane", why))
    }

    /// Refuses another database.
    pub(super) fn require_source(&self, source: &ManifestSource) -> Result<(), Error> {
        let TargetPosition { target, source: from, .. } = self;
        if from != source {
            let why = format!(
                "the rows of {target} are from the database {} of cluster {}, and the export is from the database {} of cluster {}: \
                 --table names another table, or remove the table and its row of cdc_apply.positions",
                from.database, from.cluster, source.database, source.cluster
            );
            return Err(Error::refused("another_source", why));
        }
        Ok(())
    }
}

/// The table, in a schema.
pub(super) fn with_schema(table: Table) -> Table {
    Table { schema: table.schema.or_else(|| Some(SCHEMA.to_owned())), ..table }
}

/// Returns the name of a table among the positions.
pub(super) fn key(table: &Table) -> String {
    with_schema(table.clone()).to_string()
}

/// Makes this transaction the only one that applies to the table.
pub(super) async fn lock(conn: &mut PgConnection, target: &str) -> Result<(), Error> {
    sqlx::query("-- apply.position.lock\n select pg_advisory_xact_lock(hashtextextended('cdc_apply ' || $1, 0))")
        .bind(target)
        .execute(&mut *conn)
        .await
        .map(drop)
        .doing("a lock")
}

/// Makes the table of the positions, if it isn't there, in a transaction of its own: other tables' first exports don't
/// wait for this one's.
pub(super) async fn make(conn: &mut PgConnection) -> Result<(), Error> {
    if is_there(conn).await? {
        return Ok(());
    }
    // Two tables' first exports may come at once.
    sqlx::raw_sql(
        "-- apply.position.create
         select pg_advisory_xact_lock(hashtextextended('cdc_apply', 0));
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
           job uuid not null,
           number bigint not null,
           digest text not null,
           details jsonb not null,
           applied_at timestamptz not null
         );
         comment on table cdc_apply.positions is 'The last export that cdc-export apply has brought to each table';",
    )
    .execute(conn)
    .await
    .map(drop)
    .doing("to make the table cdc_apply.positions")
}

async fn is_there(conn: &mut PgConnection) -> Result<bool, Error> {
    let there =
        sqlx::query_scalar("-- apply.position.is_there\n select to_regclass('cdc_apply.positions') is not null");
    there.fetch_one(conn).await.doing(DEED)
}

/// The position of a table.
pub(super) async fn of_table(conn: &mut PgConnection, target: &str) -> Result<Option<TargetPosition>, Error> {
    if !is_there(conn).await? {
        return Ok(None);
    }
    sqlx::query_as(
        "-- apply.position.of_table
         select target, job, number, digest, consumer, dataset, source, details from cdc_apply.positions where target = $1",
    )
    .bind(target)
    .fetch_optional(conn)
    .await
    .doing(DEED)
}

/// The position of the only table that gets a lane.
pub(super) async fn of_lane(
    conn: &mut PgConnection,
    consumer: &ConsumerId,
    dataset: &str,
) -> Result<Option<TargetPosition>, Error> {
    if !is_there(conn).await? {
        return Ok(None);
    }
    let mut positions: Vec<TargetPosition> = sqlx::query_as(
        "-- apply.position.of_lane
         select target, job, number, digest, consumer, dataset, source, details from cdc_apply.positions
         where consumer = $1 and dataset = $2 limit 2",
    )
    .bind(consumer.as_str())
    .bind(dataset)
    .fetch_all(conn)
    .await
    .doing(DEED)?;
    if positions.len() > 1 {
        return Err(Error::refused("several_tables", "several tables get these exports: --table names one"));
    }
    Ok(positions.pop())
}

/// Records the export as the last one that the table has got.
pub(super) async fn write(
    conn: &mut PgConnection,
    target: &str,
    manifest: &Manifest,
    shape: &TargetTable,
    deleted: Option<&str>,
) -> Result<(), Error> {
    let export = &manifest.export;
    let job: Uuid = export.job.parse().map_err(|_| Error::refused("no_id", "the export's id can't be read"))?;
    let number = i64::try_from(manifest.number).map_err(|_| Error::refused("no_id", "the export's number can't be"))?;
    let deleted = deleted.map(str::to_owned);
    let (oid, numbers) = (shape.oid, shape.numbers.clone());
    let details = Details { key: export.key.clone(), columns: export.columns.clone(), deleted, oid, numbers };
    sqlx::query(
        "-- apply.position.write
         insert into cdc_apply.positions (target, consumer, dataset, source, job, number, digest, details, applied_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp())
         on conflict (target) do update set consumer = excluded.consumer, dataset = excluded.dataset, source = excluded.source,
           job = excluded.job, number = excluded.number, digest = excluded.digest, details = excluded.details,
           applied_at = excluded.applied_at",
    )
    .bind(target)
    .bind(&export.consumer)
    .bind(&export.dataset)
    .bind(Json(&export.source))
    .bind(job)
    .bind(number)
    .bind(&manifest.digest)
    .bind(Json(details))
    .execute(conn)
    .await
    .map(drop)
    .doing(DEED)
}
