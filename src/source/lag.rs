//! How far consumers lag behind a table: how much has changed since their last exports, and whether that can be told exactly.
//!
//! What waits is counted out of a bounded number of entries, which all consumers share: however much waits, and for however many, a
//! page costs the same. Who is further behind than these entries reach has at least what they say.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::dataset::{Capture, Column, Dataset};
use crate::job::marker::Marker;
use crate::job::{Continuity, ExportType};
use crate::source::captured::capture;
use crate::source::quote::{quoted, relation};
use crate::source::role_path::widen;
use crate::source::select::{Select, logged};
use crate::source::{Error, Source, rights, table_schema};
use crate::watermark::{COUNTED_ROWS, ConsumerLag, Waiting};
use pg_rows::column::ColumnType;

impl Source {
    /// How far these consumers, each with its lane's marker, lag behind a dataset, in the order of their ids. Counts out of `changes`
    /// changes at most.
    pub async fn lags(
        &self,
        dataset: &Dataset,
        consumers: &[(&str, Option<Marker>)],
        changes: u64,
    ) -> Result<Vec<ConsumerLag>, Error> {
        let failed = Error::of(&dataset.table);
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        let seen = rights::look(&mut conn, dataset).await.map_err(&failed)?;
        if let Some(fault) = seen.unreadable {
            return Err(Error::NotReadable(fault));
        }
        let schema = table_schema::introspect_seen(&mut conn, dataset, &seen).await?;
        let select = Select { dataset, schema: &schema };
        let mut tx = conn.begin().await.map_err(&failed)?;
        // The newest come from an index, in its order, whatever the planner guesses of how much there is.
        let plan = format!(
            "-- source.lag.plan\n set local enable_seqscan = off; set local enable_bitmapscan = off; {}",
            widen(dataset, &schema)
        );
        let widened = sqlx::raw_sql(AssertSqlSafe(plan)).fetch_one(&mut *tx).await.map_err(&failed)?;
        // The statement that counts doesn't name the schemas of all functions, and others may have functions in the role's path.
        if widened.try_get(0).map_err(&failed)? {
            return Err(Error::CantPlan(format!(
                "what waits of `{}` can't be counted: an index needs the role's search_path",
                dataset.table
            )));
        }
        let newest = match &schema.updated_at {
            Some(time) => has_index(&mut tx, &relation(&schema.table), &time.name).await.map_err(&failed)?,
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
            .fetch_all(&mut *tx)
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        let lag = |row: sqlx::postgres::PgRow| {
            let consumer: String = row.try_get("consumer_id").map_err(&failed)?;
            let word: Option<String> = row.try_get("continuity").map_err(&failed)?;
            let rows: i64 = row.try_get("rows_waiting").map_err(&failed)?;
            let word = Continuity::of_guard(word.as_deref()).map_err(|_| Error::Protocol("an unknown word"))?;
            let logged_key: Option<Vec<String>> = row.try_get("logged_key").map_err(&failed)?;
            let captured: bool = row.try_get("captured").map_err(&failed)?;
            let is_captured = captured && logged_key.is_some_and(|key| schema.has_key(&key));
            let is_capped: bool = row.try_get("is_capped").map_err(&failed)?;
            Ok(ConsumerLag {
                consumer: consumer.parse().map_err(|_| Error::Protocol("a consumer id that is none"))?,
                dataset: dataset.name.clone(),
                last_exported_at: row.try_get("last_exported_at").map_err(&failed)?,
                rows_waiting: match rows.unsigned_abs() {
                    rows if rows <= COUNTED_ROWS && !is_capped => Waiting::Exactly(rows),
                    rows => Waiting::AtLeast(rows.min(COUNTED_ROWS)),
                },
                // The guard lets a first export be, or one that goes by its time: the next one would need a full export.
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

/// Whether an index has the rows of a table by this column, so that the newest rows are found without reading all.
pub(crate) async fn has_index(conn: &mut PgConnection, table: &str, column: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "-- source.lag.has_index
         select exists (
           select from pg_index x
           join pg_class i on i.oid = x.indexrelid
           join pg_am m on m.oid = i.relam and m.amname = 'btree'
           join pg_attribute a on a.attrelid = x.indrelid and a.attnum = x.indkey[0] and a.attname = $2
           where x.indrelid = to_regclass($1) and x.indisvalid and x.indpred is null)",
    )
    .bind(table)
    .bind(column)
    .fetch_one(conn)
    .await
}

/// The statement of how far consumers lag behind a dataset. Where a consumer has a position, the log tells its changes; where it has a
/// watermark alone, the rows' times do; where somebody set the watermark back, both do. Where a consumer has neither, all rows are its
/// changes. `newest`: the newest rows are found by an index.
fn statement(select: &Select<'_>, newest: bool) -> String {
    let table = select.table();
    let time = select.schema.updated_at.as_ref();
    // A snapshot has not seen what began after it, nor what was under way: two ranges of the log, each read from its near end.
    let by_log = format!(
        "recent as materialized (
           select key, xid::text::bigint as xid
           from (
             select key, xid from cdc_export.change_log where table_oid = (select oid from t) order by table_oid desc, xid desc
             limit case when exists (select from positions where by_log) then $7 else 0 end) newest),
         reach as (select min(xid) as oldest from recent having count(*) >= $7),
         keys as materialized (select key, max(xid) as xid from recent where key is not null group by key),
         later as (
           select consumer_id, rows
           from (
             select consumer_id,
               count(*) filter (where consumer_id is null) over (order by xid desc, consumer_id nulls first rows unbounded preceding) as rows
             from (
               select xid, null as consumer_id from keys
               union all
               select next, consumer_id from positions where by_log) marks) ranked
           where consumer_id is not null),
         under_way as (
           select p.consumer_id, count(distinct e.key) filter (where k.xid is null or k.xid < p.next) as rows, count(*) as entries
           from positions p
           cross join lateral (
             select l.key from cdc_export.change_log l
             where l.table_oid = (select oid from t) and l.xid = any (array(select pg_snapshot_xip(p.live_snapshot))) and l.key is not null
             limit {SHARE}) e
           left join keys k on k.key = e.key
           where p.by_log
           group by p.consumer_id)"
    );
    let (by_time, by_both) = match time {
        Some(time) => (by_time(time, &table, newest), by_both(select, time, &table, newest)),
        None => (
            "behind as (select null::text as consumer_id, 0 as rows, false as is_capped where false)".to_owned(),
            "set_back as (select null::text as consumer_id, 0 as rows, false as is_capped where false)".to_owned(),
        ),
    };
    format!(
        "-- source.lag.list
         with t as materialized (select oid, relname, relnamespace, relkind, relispartition from pg_class where oid = to_regclass($3)),
         n as materialized (select n.nspname from pg_namespace n join t on t.relnamespace = n.oid),
         here as materialized (select here.* from t cross join n cross join lateral {capture} capture cross join lateral {here} here),
         positions as materialized (
           select k.consumer_id, w.last_exported_at, w.live_snapshot, pg_snapshot_xmax(w.live_snapshot)::text::bigint as next,
             {continuity} as continuity,
             -- A time that somebody set in place of ours rules alone.
             $4 and w.live_snapshot is not null
               and not coalesce(w.last_exported_at > w.saved_last_exported_at or w.saved_last_exported_at is null and w.last_exported_at is not null, false) as by_log,
             coalesce(w.last_exported_at < w.saved_last_exported_at and {has_times} or w.last_exported_at is null and w.saved_last_exported_at is not null, false)
               as is_set_back
           from unnest($2::text[], $9::uuid[], $10::text[]) as k (consumer_id, job, sha256)
           cross join lateral (select k.consumer_id, $1 as dataset) lane
           cross join lateral (select k.job, k.sha256, false as is_asked) m
           cross join lateral {witness} witness
           cross join t cross join here cross join pg_control_system() c
           cross join (select $4::boolean as by_triggers, $5::text as definition, $6::jsonb as types, $11::jsonb as guard_state) wanted
           left join watermarks w on w.consumer_id = k.consumer_id and w.dataset = $1),
         {by_log},
         {by_time},
         {by_both},
         everything as materialized (
           select count(*) as rows from (
             select from {table} u
             limit case when exists (select from positions where last_exported_at is null and (not by_log or is_set_back))
               then $8 else 0 end) few)
         select p.consumer_id, p.last_exported_at, p.continuity, here.captured, here.logged_key,
           case
             when p.last_exported_at is null and (not p.by_log or p.is_set_back) then everything.rows
             when p.by_log and p.is_set_back then set_back.rows
             when p.by_log then later.rows + coalesce(under_way.rows, 0)
             else coalesce(behind.rows, 0) end as rows_waiting,
           case
             when p.last_exported_at is null and (not p.by_log or p.is_set_back) then false
             when p.by_log and p.is_set_back then set_back.is_capped
             when p.by_log then coalesce(p.next <= reach.oldest, false) or coalesce(under_way.entries >= {SHARE}, false)
             else coalesce(behind.is_capped, false) end as is_capped
         from positions p
         cross join here
         cross join everything
         left join reach on true
         left join later using (consumer_id)
         left join under_way using (consumer_id)
         left join behind using (consumer_id)
         left join set_back using (consumer_id)
         order by p.consumer_id collate \"C\"",
        capture = capture!(),
        here = include_str!("guard/here.sql"),
        continuity = include_str!("guard/continuity.sql"),
        witness = include_str!("guard/witness.sql"),
        has_times = time.is_some(),
    )
}

/// How many changes are read for one consumer alone, of those that are read for all.
const SHARE: &str = "greatest($7 / (select count(*) from positions), 100)";

/// The times of the table's newest rows, or of any, and for each consumer how many of these are after its watermark.
fn by_time(time: &Column, table: &str, newest: bool) -> String {
    let name = format!("u.{}", quoted(&time.name));
    // One without a zone is taken for UTC.
    let at = if time.kind == ColumnType::Timestamp { format!("({name} at time zone 'UTC')") } else { name.clone() };
    let order = if newest { format!("where {name} is not null order by {name} desc") } else { String::new() };
    let reached = if newest { "p.last_exported_at >= all_of_them.oldest" } else { "false" };
    format!(
        "times as materialized (
           select {at} as at
           from (
             select {name} from {table} u {order}
             limit case when exists (select from positions where not by_log and last_exported_at is not null) then $7 else 0 end) u),
         behind as (
           select consumer_id, ranked.rows, all_of_them.are_cut and not {reached} as is_capped
           from (
             select consumer_id,
               count(*) filter (where consumer_id is null) over (order by at desc, consumer_id nulls last rows unbounded preceding) as rows
             from (
               select at, null as consumer_id from times where at is not null
               union all
               select last_exported_at, consumer_id from positions where not by_log and last_exported_at is not null) marks) ranked
           join positions p using (consumer_id)
           cross join (select min(at) as oldest, count(*) >= $7 as are_cut from times) all_of_them)"
    )
}

/// For a consumer whose watermark was set back: what changed, and what its watermark says, each row once.
fn by_both(select: &Select<'_>, time: &Column, table: &str, newest: bool) -> String {
    let key = select.schema.key.iter().map(|part| &part.column).filter(|column| column.name != time.name);
    let names: Vec<String> = key.chain([time]).map(|column| format!("u.{}", quoted(&column.name))).collect();
    let name = format!("u.{}", quoted(&time.name));
    let order = if newest { format!("where {name} is not null order by {name} desc") } else { String::new() };
    let reached = if newest {
        format!(
            "exists (select from found u where not {})",
            select.timestamp_rule_since("p.last_exported_at", "p.last_exported_at", "p.live_snapshot")
        )
    } else {
        "false".to_owned()
    };
    format!(
        "set_back as (
           select p.consumer_id, changed.rows, changed.is_capped
           from positions p
           cross join lateral (
             with log as materialized (
               select * from cdc_export.change_log
               where table_oid = (select oid from t) and xid >= pg_snapshot_xmin(p.live_snapshot) order by table_oid desc, xid desc limit {SHARE}),
             found as materialized (select {columns} from {table} u {order} limit {SHARE})
             select
               (select count(*) from (
                  select {logged_key} from log where {logged}
                  union
                  select {key} from found u where {by_rule}) either_way) as rows,
               (select count(*) from log) >= {SHARE} or (select count(*) from found) >= {SHARE} and not {reached} as is_capped) changed
           where p.by_log and p.is_set_back and p.last_exported_at is not null)",
        columns = names.join(", "),
        logged_key = select.key().of_log().join(", "),
        logged = logged("table_oid", "p.live_snapshot"),
        key = select.key().of_row("u").join(", "),
        by_rule = select.timestamp_rule_since("p.last_exported_at", "p.last_exported_at", "p.live_snapshot"),
    )
}
