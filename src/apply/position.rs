//! Where each table of a target is, in the target itself: `cdc_apply.positions`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::types::{Json, Uuid};

use crate::apply::table::Shape;
use crate::apply::{Doing, Error};
use crate::dataset::Table;
use crate::job::ConsumerId;
use crate::manifest::{Column, Manifest, Source};

/// The schema of a table that is named without one.
const SCHEMA: &str = "public";

const DEED: &str = "the table cdc_apply.positions";

/// The last export that a table has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its id.
    pub job: Uuid,
    /// Its place in its lane.
    pub number: u64,
    /// What the next one names as the one before.
    pub digest: String,
    pub(super) key: Vec<String>,
    pub(super) columns: Vec<Column>,
    /// How deleted rows were kept.
    pub(super) deleted: Option<String>,
    /// The table's number in the catalog.
    pub(super) oid: i64,
    /// The numbers of its columns, by their names.
    pub(super) numbers: BTreeMap<String, i16>,
    lane: Lane,
}

/// Which exports a table gets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lane {
    consumer: String,
    dataset: String,
    source: Source,
}

#[derive(sqlx_macros::FromRow)]
struct Row {
    job: Uuid,
    number: i64,
    digest: String,
    consumer: String,
    dataset: String,
    source: Json<Source>,
    details: Json<Details>,
}

#[derive(Serialize, Deserialize)]
struct Details {
    key: Vec<String>,
    columns: Vec<Column>,
    deleted: Option<String>,
    oid: i64,
    numbers: BTreeMap<String, i16>,
}

#[derive(sqlx_macros::FromRow)]
struct NamedRow {
    target: String,
    #[sqlx(flatten)]
    row: Row,
}

impl From<Row> for Position {
    fn from(row: Row) -> Position {
        let Row { job, number, digest, consumer, dataset, source: Json(source), details: Json(details) } = row;
        let lane = Lane { consumer, dataset, source };
        let Details { key, columns, deleted, oid, numbers } = details;
        Position { job, number: number.unsigned_abs(), digest, key, columns, deleted, oid, numbers, lane }
    }
}

impl Position {
    /// The database that its rows are from.
    pub fn source(&self) -> &Source {
        &self.lane.source
    }

    /// Refuses another lane.
    pub(super) fn require_lane(&self, target: &str, consumer: &ConsumerId, dataset: &str) -> Result<(), Error> {
        let Lane { consumer: of, dataset: and, .. } = &self.lane;
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
    pub(super) fn require_source(&self, target: &str, source: &Source) -> Result<(), Error> {
        let from = &self.lane.source;
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

/// What a table is called among the positions.
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

/// Makes the table of the positions, if it isn't there, in a transaction of its own: other tables' first exports don't wait for this one's.
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

/// Where a table is.
pub(super) async fn of_table(conn: &mut PgConnection, target: &str) -> Result<Option<Position>, Error> {
    if !is_there(conn).await? {
        return Ok(None);
    }
    let row: Option<Row> = sqlx::query_as(
        "-- apply.position.of_table
         select job, number, digest, consumer, dataset, source, details from cdc_apply.positions where target = $1",
    )
    .bind(target)
    .fetch_optional(conn)
    .await
    .doing(DEED)?;
    Ok(row.map(Position::from))
}

/// The only table that gets a lane, and where it is.
pub(super) async fn of_lane(
    conn: &mut PgConnection,
    consumer: &ConsumerId,
    dataset: &str,
) -> Result<Option<(Table, Position)>, Error> {
    if !is_there(conn).await? {
        return Ok(None);
    }
    let rows: Vec<NamedRow> = sqlx::query_as(
        "-- apply.position.of_lane
         select target, job, number, digest, consumer, dataset, source, details from cdc_apply.positions
         where consumer = $1 and dataset = $2 limit 2",
    )
    .bind(consumer.as_str())
    .bind(dataset)
    .fetch_all(conn)
    .await
    .doing(DEED)?;
    if rows.len() > 1 {
        return Err(Error::refused("several_tables", "several tables get these exports: --table names one"));
    }
    let Some(NamedRow { target, row }) = rows.into_iter().next() else { return Ok(None) };
    let table = target.parse().map_err(|_| Error::refused("table_unknown", format!("{target} is no table's name")))?;
    Ok(Some((table, row.into())))
}

/// Records the export as the last one that the table has got.
pub(super) async fn write(
    conn: &mut PgConnection,
    target: &str,
    manifest: &Manifest,
    shape: &Shape,
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
