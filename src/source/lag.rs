//! The lag of consumers behind a table: the number of rows that changed since their last exports, and the guard's
//! verdict.
//!
//! The rows are counted out of a bounded number of log entries, which all consumers of a page share. So a page costs
//! the same, however many rows wait and for however many consumers. A consumer that is further behind than these
//! entries reach has at least the reported number.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::connection::statement::with_pieces;
use crate::dataset::{Capture, Dataset, Table, TableColumn};
use crate::job::marker::Marker;
use crate::job::{Continuity, ExportType};
use crate::source::captured::CAPTURE;
use crate::source::guard::VERDICT;
use crate::source::quote::{quoted, relation};
use crate::source::relation_locks::NO_WAIT;
use crate::source::role_path::widen;
use crate::source::rows::Rows;
use crate::source::select::{LAST_TIME, Select};
use crate::source::value::in_zone_of;
use crate::source::{Error, Source, owners, rights, table_schema};
use crate::watermark::{COUNTED_ROWS, ConsumerLag, Waiting};

impl Source {
    /// Reads the lag of these consumers, each with its lane's marker, in the order of their ids. Counts out of
    /// `changes` changes at most.
    pub async fn lags(
        &self,
        dataset: &Dataset,
        consumers: &[(&str, Option<Marker>)],
        changes: u64,
    ) -> Result<Vec<ConsumerLag>, Error> {
        let failed = Error::from_sql(&dataset.table);
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        let access = rights::read_access(&mut conn, dataset).await.map_err(&failed)?;
        if let Some(fault) = access.unreadable {
            return Err(Error::NotReadable(fault));
        }
        let schema = table_schema::introspect_visible(&mut conn, dataset, &access).await?;
        let select = Select::new(dataset, &schema);
        let mut tx = conn.begin().await.map_err(&failed)?;
        if !owners::lock_trusted(&mut tx, &[(dataset, &schema.table)]).await.map_err(&failed)? {
            return Err(Error::CantPlan(format!("`{}` belongs to another role by now", dataset.table)));
        }
        // A locked table isn't waited for, so that it doesn't take its connection from others. The newest come from an
        // index, in its order, whatever the planner guesses of how much there is.
        let plan = format!(
            "-- source.lag.plan
             {NO_WAIT}; set local enable_seqscan = off; set local enable_bitmapscan = off; {}",
            widen(dataset, &schema, None)
        );
        let widened = sqlx::raw_sql(AssertSqlSafe(plan)).fetch_one(&mut *tx).await.map_err(&failed)?;
        // The statement that counts doesn't name the schemas of all functions, and others may have functions in the
        // role's path.
        if widened.try_get(0).map_err(&failed)? {
            return Err(Error::CantPlan(format!(
                "what waits of `{}` can't be counted: an index needs the role's search_path",
                dataset.table
            )));
        }
        let newest = match &schema.updated_at {
            Some(time) => has_index(&mut tx, &schema.table, &time.name).await.map_err(&failed)?,
            None => false,
        };
        let (ids, markers): (Vec<_>, Vec<_>) = consumers.iter().map(|(id, marker)| (*id, marker.as_ref())).unzip();
        let rows = sqlx::query(AssertSqlSafe(statement(&select, newest)))
            .bind(&dataset.name)
            .bind(ids)
            .bind(relation(&schema.table))
            .bind(dataset.capture == Capture::Triggers)
            .bind(dataset.definition())
            .bind(Json(&schema.types))
            .bind(changes as i64)
            .bind(COUNTED_ROWS as i64 + 1)
            .bind(markers.iter().map(|marker| marker.map(|marker| marker.job.as_uuid())).collect::<Vec<_>>())
            .bind(markers.iter().map(|marker| marker.map(|marker| marker.sha256.as_str())).collect::<Vec<_>>())
            .bind(Json(&schema.guard_state))
            .bind(schema.updated_at.is_some())
            .fetch_all(&mut *tx)
            .await
            .map_err(|cause| failed(cause).withheld(dataset))?;
        tx.commit().await.map_err(&failed)?;
        let lag = |row: sqlx::postgres::PgRow| {
            let consumer: String = row.try_get("consumer_id").map_err(&failed)?;
            let word: Option<String> = row.try_get("continuity").map_err(&failed)?;
            let rows: i64 = row.try_get("rows_waiting").map_err(&failed)?;
            let word = Continuity::from_guard(word.as_deref()).map_err(|_| Error::Protocol("an unknown word"))?;
            let logged_key: Option<Vec<String>> = row.try_get("logged_key").map_err(&failed)?;
            let captured: bool = row.try_get("captured").map_err(&failed)?;
            let is_captured = captured && logged_key.is_some_and(|key| schema.has_key(&key));
            let is_capped: bool = row.try_get("is_capped").map_err(&failed)?;
            Ok(ConsumerLag {
                consumer: consumer.parse().map_err(|_| Error::Protocol("a consumer id that is none"))?,
                waiting_since: row.try_get("waiting_since").map_err(&failed)?,
                dataset: dataset.name.clone(),
                last_exported_at: row.try_get("last_exported_at").map_err(&failed)?,
                rows_waiting: match rows.unsigned_abs() {
                    rows if rows <= COUNTED_ROWS && !is_capped => Waiting::Exactly(rows),
                    rows => Waiting::AtLeast(rows.min(COUNTED_ROWS)),
                },
                // The guard lets a first export be, or one that goes by its time: the next one would need a full
                // export.
                continuity: match word {
                    Some(why) if !why.allows(ExportType::Delta) => Some(why),
                    _ if dataset.capture == Capture::Triggers && !is_captured => Some(Continuity::TriggerMissing),
                    _ => word,
                },
            })
        };
        rows.into_iter().map(lag).collect()
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
        let goes_by_log = self.position.live.is_some() && self.position.deleted_since.is_none();
        (goes_by_log && export_type != ExportType::Full).then(|| ChangesCount {
            table: self.select.dataset.table.clone(),
            query: format!("-- source.lag.count\n {}", self.select.count_changes(export_type)),
        })
    }
}

impl Source {
    /// Counts changes, also those since the export took its snapshot.
    ///
    /// # Errors
    /// If Postgres fails, or takes longer than 10 seconds.
    pub async fn count_changes(&self, ChangesCount { table, query }: &ChangesCount) -> Result<u64, Error> {
        let failed = Error::from_sql(table);
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        let mut tx = conn.begin().await.map_err(&failed)?;
        sqlx::raw_sql("-- source.lag.timeout\n set local statement_timeout = '10s'")
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        let count = sqlx::query_scalar(AssertSqlSafe(query.as_str())).persistent(false);
        let rows: i64 = count.fetch_one(&mut *tx).await.map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(rows.unsigned_abs())
    }
}

/// Returns true if an index has the rows of a table by this column, so that the newest rows are found without reading
/// all.
pub(crate) async fn has_index(conn: &mut PgConnection, table: &Table, column: &str) -> Result<bool, sqlx::Error> {
    Ok(have_index(conn, &[(table, column)]).await? == [true])
}

/// Returns, for each table and its column, what [`has_index`] returns of them.
pub(crate) async fn have_index(conn: &mut PgConnection, columns: &[(&Table, &str)]) -> Result<Vec<bool>, sqlx::Error> {
    let (tables, columns): (Vec<_>, Vec<_>) = columns.iter().map(|(table, column)| (relation(table), *column)).unzip();
    sqlx::query_scalar(include_str!("lag/have_index.sql")).bind(tables).bind(columns).fetch_all(conn).await
}

/// Returns the statement of `lag.sql` with the pieces that depend on the table. `newest`: an index finds the newest
/// rows.
fn statement(select: &Select<'_>, newest: bool) -> String {
    let table = select.table();
    let (behind, set_back) = match &select.schema.updated_at {
        Some(time) => (by_time(time, &table, newest), by_log_and_time(select, time, &table, newest)),
        None => (none_as("behind"), none_as("set_back")),
    };
    let everything = format!(
        ", everything as materialized (
           select count(*) as rows
           from (
             select from {table} u
             limit case
               when exists (select from positions where last_exported_at is null and (not by_log or is_set_back)) then $8
               else 0
             end) few)\n"
    );
    with_pieces(
        include_str!("lag.sql"),
        &[
            ("captured.sql", CAPTURE),
            ("guard/verdict.sql", VERDICT),
            ("behind", &behind),
            ("set_back", &set_back),
            ("everything", &everything),
        ],
    )
}

/// A CTE without rows: the table has no times.
fn none_as(name: &str) -> String {
    let columns = "null::text as consumer_id, 0 as rows, false as is_capped, null::timestamptz as since";
    format!(", {name} as (select {columns} where false)\n")
}

/// Returns the CTEs that count the rows after each watermark, out of the table's newest rows, or out of any.
fn by_time(time: &TableColumn, table: &str, newest: bool) -> String {
    let name = format!("u.{}", quoted(&time.name));
    let at = in_zone_of(time, &name);
    let order = newest_first(&name, newest);
    let reached = if newest { "p.last_exported_at >= all_times.oldest" } else { "false" };
    // Times so far ahead are of no use: see `timestamp_rule_since`.
    let since = match newest {
        true => format!(
            "(select {at} from {table} u where {name} > {} and {name} < {} order by {name} limit 1)",
            in_zone_of(time, "p.last_exported_at"),
            in_zone_of(time, LAST_TIME),
        ),
        false => format!(
            "case when not all_times.are_cut then (
               select min(at) from times where at > p.last_exported_at and at < {LAST_TIME}) end"
        ),
    };
    format!(
        ", times as materialized (
           select {at} as at
           from (
             select {name} from {table} u {order}
             limit case
               when exists (select from positions where not by_log and last_exported_at is not null) then $7
               else 0
             end) u),
         behind as (
           select consumer_id, ranked.rows, all_times.are_cut and not {reached} as is_capped, {since} as since
           from (
             select consumer_id,
               count(*) filter (where consumer_id is null)
                 over (order by at desc, consumer_id nulls last rows unbounded preceding) as rows
             from (
               select at, null as consumer_id from times where at is not null
               union all
               select last_exported_at, consumer_id from positions
               where not by_log and last_exported_at is not null) marks) ranked
           join positions p using (consumer_id)
           cross join (select min(at) as oldest, count(*) >= $7 as are_cut from times) all_times)\n"
    )
}

/// Returns the CTE that counts, for a consumer whose watermark was set back, each row that the log or the watermark
/// says.
fn by_log_and_time(select: &Select<'_>, time: &TableColumn, table: &str, newest: bool) -> String {
    let key = select.schema.key.iter().map(|part| &part.column).filter(|column| column.name != time.name);
    let columns: Vec<String> = key.chain([time]).map(|column| format!("u.{}", quoted(&column.name))).collect();
    let order = newest_first(&format!("u.{}", quoted(&time.name)), newest);
    let by_rule = select.timestamp_rule_since("p.last_exported_at", "p.last_exported_at", "p.live_snapshot");
    let reached = if newest { format!("exists (select from found u where not {by_rule})") } else { "false".to_owned() };
    format!(
        ", set_back as (
           select p.consumer_id, changed.rows, changed.is_capped
           from positions p
           cross join lateral (
             with log as materialized (
               (select * from cdc_export.change_log
                where table_oid = (select oid from target) and xid >= pg_snapshot_xmax(p.live_snapshot)
                order by table_oid desc, xid desc
                limit (select entries from share))
               union all
               (select * from cdc_export.change_log
                where table_oid = (select oid from target)
                  and xid = any (array(select pg_snapshot_xip(p.live_snapshot)))
                limit (select entries from share))),
             found as materialized (select {columns} from {table} u {order} limit (select entries from share))
             select
               (select count(*) from (
                  select {logged_key} from log where key is not null
                  union
                  select {key} from found u where {by_rule}) either_way) as rows,
               (select count(*) from log) >= (select entries from share)
                 or (select count(*) from found) >= (select entries from share) and not {reached} as is_capped) changed
           where p.by_log and p.is_set_back and p.last_exported_at is not null)\n",
        columns = columns.join(", "),
        logged_key = select.key().of_log().join(", "),
        key = select.key().of_row("u").join(", "),
    )
}

/// The order in which an index finds the newest rows.
fn newest_first(name: &str, newest: bool) -> String {
    if newest { format!("where {name} is not null order by {name} desc") } else { String::new() }
}
