//! The lag of consumers behind a table: the guard's verdict, and since when changes wait where the change log doesn't
//! tell that.

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::captured::CAPTURE;
use crate::continuity::Continuity;
use crate::guard::{LaneEvidence, VERDICT};
use crate::quote::{quoted, relation};
use crate::relation_locks::NO_WAIT;
use crate::role_path::widen;
use crate::rows::Rows;
use crate::select::{LAST_TIME, Select};
use crate::value::in_zone_of;
use crate::watermark::{ConsumerLag, Readiness, Waiting};
use crate::{Error, Source, owners, rights, table_schema};
use cdc_dataset::{Capture, Dataset, TableColumn, TableSchema};
use pg_rows::export_type::ExportType;
use pg_session::statement::with_pieces;
use pg_session::table_name::Table;

impl Source {
    /// Reads the lag of these consumers, each with its lane's evidence, in the order of their ids.
    pub async fn lags(&self, dataset: &Dataset, consumers: &[(&str, LaneEvidence)]) -> Result<Vec<ConsumerLag>, Error> {
        let failed = Error::from_sql(&dataset.table);
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        let access = rights::read_access(&mut conn, dataset).await.map_err(&failed)?;
        if let Some(fault) = access.unreadable {
            return Err(Error::NotReadable(fault));
        }
        let schemas = table_schema::introspect_all(&mut conn, &[(dataset, &access)]).await;
        let schema = schemas.map_err(Error::from_sql("pg_catalog"))?.remove(0).map_err(Error::Mismatch)?;
        let select = Select::new(dataset, &schema);
        let mut tx = conn.begin().await.map_err(&failed)?;
        if !owners::lock_trusted(&mut tx, &[(dataset, &schema.table)]).await.map_err(&failed)? {
            return Err(Error::CantPlan(format!("`{}` belongs to another role by now", dataset.table)));
        }
        prepare(&mut tx, dataset, &schema).await?;
        let has_index = match &schema.updated_at {
            Some(time) => has_index(&mut tx, &schema.table, &time.name).await.map_err(&failed)?,
            None => false,
        };
        let (ids, evidence): (Vec<_>, Vec<_>) = consumers.iter().copied().unzip();
        let rows: Vec<LagRow> = sqlx::query_as(AssertSqlSafe(statement(&select, has_index)))
            .bind(&dataset.name)
            .bind(ids)
            .bind(relation(&schema.table))
            .bind(dataset.capture == Capture::Triggers)
            .bind(dataset.definition())
            .bind(Json(&schema.types))
            .bind(evidence.iter().map(|lane| lane.confirms).collect::<Vec<_>>())
            .bind(evidence.iter().map(|lane| lane.contradicts).collect::<Vec<_>>())
            .bind(Json(&schema.guard_state))
            .fetch_all(&mut *tx)
            .await
            .map_err(|cause| failed(cause).withheld(dataset))?;
        tx.commit().await.map_err(&failed)?;
        rows.into_iter().map(|row| row.lag(dataset, &schema)).collect()
    }
}

/// Prepares a transaction for the statement of `lag.sql`. It doesn't wait for a locked table, so that it doesn't keep
/// its connection from others. The earliest time comes from an index, whatever the planner guesses of how many rows
/// there are.
async fn prepare(tx: &mut PgConnection, dataset: &Dataset, schema: &TableSchema) -> Result<(), Error> {
    let failed = Error::from_sql(&dataset.table);
    let plan = format!(
        "-- source.lag.plan
         {NO_WAIT}; set local enable_seqscan = off; set local enable_bitmapscan = off; {}",
        widen(dataset, schema, None)
    );
    let widened = sqlx::raw_sql(AssertSqlSafe(plan)).fetch_one(tx).await.map_err(&failed)?;
    // The statement doesn't name the schemas of all functions, and others may have functions in the role's path.
    match widened.try_get(0).map_err(failed)? {
        false => Ok(()),
        true => Err(Error::CantPlan(format!(
            "what waits of `{}` can't be looked up: an index needs the role's search_path",
            dataset.table
        ))),
    }
}

#[derive(sqlx_macros::FromRow)]
struct LagRow {
    consumer_id: String,
    last_exported_at: Option<DateTime<Utc>>,
    continuity: Option<String>,
    captured: bool,
    logged_key: Option<Vec<String>>,
    since: Option<DateTime<Utc>>,
    is_none: bool,
}

impl LagRow {
    fn lag(self, dataset: &Dataset, schema: &TableSchema) -> Result<ConsumerLag, Error> {
        let word = Continuity::from_guard(self.continuity.as_deref());
        let word = word.map_err(|_| Error::Protocol("an unknown word"))?;
        let is_captured = self.captured && self.logged_key.is_some_and(|key| schema.has_key(&key));
        let is_untracked = dataset.capture == Capture::Triggers && !is_captured;
        Ok(ConsumerLag {
            consumer: self.consumer_id,
            dataset: dataset.name.clone(),
            last_exported_at: self.last_exported_at,
            table: if is_untracked { Readiness::NotTracked } else { Readiness::Ready },
            waiting: if self.is_none { Waiting::Nothing } else { self.since.map_or(Waiting::Unknown, Waiting::Since) },
            // The guard allows a first export, and one that goes by its time, although the next one would need a full
            // export.
            continuity: match word {
                Some(why) if !why.allows(ExportType::Delta) => Some(why),
                _ if is_untracked => Some(Continuity::TriggerMissing),
                _ => word,
            },
        })
    }
}

/// A query that counts the keys which the log has since the position of an export.
pub struct ChangesCount {
    table: Table,
    query: String,
}

impl Rows<'_> {
    /// Returns the count of the changes of this export. `None` if the export doesn't go by the log alone, for example
    /// because somebody has set the watermark back.
    pub fn changes_count(&self, export_type: ExportType) -> Option<ChangesCount> {
        let goes_by_log = self.table.position.live.is_some() && self.table.position.deleted_since.is_none();
        (goes_by_log && export_type != ExportType::Full).then(|| ChangesCount {
            table: self.select.dataset.table.clone(),
            query: format!("-- source.lag.count\n {}", self.select.count_changes(export_type)),
        })
    }
}

impl Source {
    /// Counts changes, also those since the export took its snapshot.
    pub async fn count_changes(&self, ChangesCount { table, query }: &ChangesCount) -> Result<u64, Error> {
        let count = sqlx::query_scalar(AssertSqlSafe(query.as_str())).persistent(false);
        let counted = self.with(table, async |conn| {
            let mut tx = conn.begin().await?;
            sqlx::raw_sql("-- source.lag.timeout\n set local statement_timeout = '10s'").execute(&mut *tx).await?;
            let rows: i64 = count.fetch_one(&mut *tx).await?;
            tx.commit().await?;
            Ok(rows.unsigned_abs())
        });
        counted.await
    }
}

/// Returns true if an index has the rows of a table by this column, so that the newest rows are found without reading
/// all.
pub(crate) async fn has_index(conn: &mut PgConnection, table: &Table, column: &str) -> Result<bool, sqlx::Error> {
    Ok(have_index(conn, &[(table, column)]).await? == [true])
}

pub(crate) async fn have_index(conn: &mut PgConnection, columns: &[(&Table, &str)]) -> Result<Vec<bool>, sqlx::Error> {
    let (tables, columns): (Vec<_>, Vec<_>) = columns.iter().map(|(table, column)| (relation(table), *column)).unzip();
    sqlx::query_scalar(include_str!("lag/have_index.sql")).bind(tables).bind(columns).fetch_all(conn).await
}

/// Returns the statement of `lag.sql` with the piece that depends on the table. `has_index`: an index has the rows by
/// their times.
fn statement(select: &Select<'_>, has_index: bool) -> String {
    let table = select.table();
    let since = match select.schema.updated_at.as_ref().filter(|_| has_index) {
        Some(time) => earliest_after_watermark(time, select.schema, &table),
        None => "null::timestamptz".to_owned(),
    };
    let waiting = format!(
        "select found.since, case
           when lane.by_log then false
           when w.last_exported_at is null then not exists (select from {table} u)
           else {has_index} and found.since is null end as is_none
         from (
           select case when not lane.by_log and w.last_exported_at is not null then {since} end as since) found"
    );
    let pieces = [("captured.sql", CAPTURE), ("guard/verdict.sql", VERDICT), ("waiting", &waiting)];
    with_pieces(include_str!("lag.sql"), &pieces)
}

fn earliest_after_watermark(time: &TableColumn, schema: &TableSchema, table: &str) -> String {
    let name = format!("u.{}", quoted(&time.name));
    let in_zone = |moment| in_zone_of(time, schema, moment);
    let (at, watermark) = (in_zone(&name), in_zone("w.last_exported_at"));
    // Times so far ahead are of no use: see `Select::changed_after`.
    let bound = in_zone(LAST_TIME);
    format!("(select {at} from {table} u where {name} > {watermark} and {name} < {bound} order by {name} limit 1)")
}
