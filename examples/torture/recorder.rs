//! The recorder: triggers on jobs, exports and every table write down the history of every attempt and every row
//! exactly. They write in the transactions that they watch, so a transaction that is rolled back leaves no record.
//!
//! The recorder uses no clock of the database, since the nemesis sets that. Snapshots show what an export may have
//! seen, and the machine's uptime shows when something happened.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::era::ExportId;
use crate::replica::Replica;
use crate::report::{Done, EXPIRE, Report};

/// Format of times, the same as the service's: RFC 3339, UTC, microseconds.
const TIME: &str = r#"'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"#;

pub(crate) const TABLES: [&str; 5] = ["users", "shapes", "parts", "fed", "calm"];

/// Returns SQL for a row's columns as texts. Null is an empty text, since a reader of CSV can't tell them apart. The
/// result is null for a row that is deleted softly.
fn fields(table: &str, row: &str) -> String {
    let time = |column: &str| format!("to_char({row}.{column} at time zone 'UTC', {TIME})");
    let (created, updated) = (time("created_at"), time("updated_at"));
    let (columns, deleted) = match table {
        "users" => (
            format!(
                "jsonb_build_object('id', {row}.id, 'name', {row}.name, 'email', {row}.email, 'created_at', {created},
                   'updated_at', {updated}, 'is_deleted', {row}.is_deleted)"
            ),
            format!("{row}.is_deleted"),
        ),
        "shapes" => (format!("to_jsonb({row})"), format!("{row}.hidden")),
        _ => (format!("to_jsonb({row})"), "false".to_owned()),
    };
    format!(
        "(select case when {deleted} then null else
            (select jsonb_object_agg(key, coalesce(value, '')) from jsonb_each_text({columns})) end)"
    )
}

/// Begins to record. The tables must exist, and no job yet.
pub(crate) async fn install(conn: &mut PgConnection) -> Result<()> {
    conn.execute(
        "create schema torture;
         create function torture.uptime() returns float8 language sql security definer set search_path = '' as
           $$ select pg_catalog.split_part(pg_catalog.pg_read_file('/proc/uptime', 0, 64), ' ', 1)::float8 $$;
         -- The exports that the service has, each with what it has of its job.
         create view torture.kept as
           select e.job, e.dataset, e.consumer_id, coalesce(e.consumer_id || '/' || e.dataset, '') as lane,
             e.lane_sequence, e.number, j.datasets is not null as is_of_datasets, j.selection, j.skip_empty,
             e.export_type, case e.status when 'open' then j.status else e.status end as status, j.cancel_requested_at,
             -- The error of an export whose failure ended the job. A lost file is the failure of each that has lost one.
             case when e.status in ('open', 'failed') then
               case when coalesce(j.error_dataset, e.dataset) = e.dataset or j.error_code = 'file_lost' then j.error_code
                 else 'other_dataset_failed' end end as error_code,
             e.report, e.rows_exported, e.bytes_written, e.output_filename, e.sha256, e.staged_name, e.digest,
             e.published_at, e.watermark_from, e.watermark_to, e.after_job, e.after_sha256
           from cdc_export.exports e join cdc_export.jobs j on j.id = e.job;
         create table torture.removed (like torture.kept);
         create function torture.remove() returns trigger language plpgsql security definer set search_path = '' as $$
         begin
           insert into torture.removed
           select k.* from torture.kept k where (k.job, k.dataset) = (old.job, old.dataset);
           return old;
         end $$;
         create trigger torture_remove before delete on cdc_export.exports
           for each row execute function torture.remove();
         create view torture.exports as
           select k.*, false as removed from torture.kept k union all select r.*, true from torture.removed r;
         -- The status in which each job has ended, which is one event, and the datasets of its exports.
         create view torture.ends as
           select job, is_of_datasets, array_agg(dataset order by dataset) as datasets,
             bool_or(cancel_requested_at is not null or status = 'cancelled') as is_cancelled,
             case
               when bool_or(status not in ('completed', 'skipped', 'failed', 'cancelled')
                 or status = 'completed' and published_at is null) then 'open'
               when bool_or(status = 'failed') then 'failed'
               when bool_or(status = 'cancelled') then 'cancelled'
               when bool_or(status = 'completed') then 'completed'
               else 'skipped' end as status
           from torture.exports group by job, is_of_datasets;
         create table torture.steps (
           seq bigint generated always as identity primary key, up float8 not null default torture.uptime(),
           snapshot text not null default pg_current_snapshot()::text,
           xid xid8 not null default pg_current_xact_id(),
           job uuid, lane text, lane_sequence bigint, was text, became text, token_was uuid, token uuid, owner text, staged text);
         create index on torture.steps (job, lane, seq);
         -- Records a step of an export, from the state that the last one before it has recorded.
         create function torture.record(export cdc_export.exports, became text, token uuid, owner text) returns void language sql as $$
           insert into torture.steps (job, lane, lane_sequence, was, became, token_was, token, owner, staged)
           select export.job, own.lane, export.lane_sequence, last.became, $2, last.token, $3, $4, export.staged_name
           from (select coalesce(export.consumer_id || '/' || export.dataset, '')) as own (lane)
           left join lateral (
             select s.became, s.token from torture.steps s
             where s.job = export.job and s.lane = own.lane and s.became not in ('published', 'moved')
             order by s.seq desc limit 1) last on true
         $$;
         create function torture.step_of_export() returns trigger language plpgsql security definer set search_path = '' as $$
         begin
           perform torture.record(new, became, null, null)
           from unnest(array[
             case when old.published_at is null and new.published_at is not null then 'published' end,
             -- Behind what a restored database doesn't know that it was handed out.
             case when tg_op = 'UPDATE' and new.lane_sequence is distinct from old.lane_sequence then 'moved' end,
             case when new.status is distinct from old.status then
               case new.status when 'open' then 'pending' else new.status end end]) became
           where became is not null;
           return null;
         end $$;
         create trigger torture_step after insert or update on cdc_export.exports
           for each row execute function torture.step_of_export();
         -- Until its exports end, each of them is as its job.
         create function torture.step_of_job() returns trigger language plpgsql security definer set search_path = '' as $$
         begin
           perform torture.record(e, new.status, case new.status when 'processing' then new.lease_token end, new.lease_owner)
           from cdc_export.exports e where e.job = new.id;
           return null;
         end $$;
         create trigger torture_step after update on cdc_export.jobs for each row
           when (new.status in ('pending', 'processing')
             and (new.status, new.lease_token) is distinct from (old.status, old.lease_token))
           execute function torture.step_of_job();
         -- The snapshots that consumers' positions are moved to.
         create table torture.positions (
           xid xid8 not null default pg_current_xact_id(), lane text not null, snapshot text not null);
         create function torture.position() returns trigger language plpgsql security definer set search_path = '' as $$
         begin
           insert into torture.positions (lane, snapshot)
           select new.consumer_id || '/' || new.dataset, new.live_snapshot::text where new.live_snapshot is not null;
           return null;
         end $$;
         create trigger torture_position after insert or update on watermarks
           for each row execute function torture.position();
         create table torture.versions (
           seq bigint generated always as identity primary key, xid xid8 not null default pg_current_xact_id(),
           tbl text not null, id bigint not null, fields jsonb);
         create table torture.moves (
           seq bigint generated always as identity primary key, xid xid8 not null default pg_current_xact_id(),
           tbl text not null, what text not null, consequence text not null);
         create table torture.triggers (name text primary key, enabled text not null);",
    )
    .await?;
    for table in TABLES {
        watch(conn, table).await?;
    }
    Ok(())
}

/// Records all writes to a table from now on, including those of an apply worker.
pub(crate) async fn watch(conn: &mut PgConnection, table: &str) -> Result<()> {
    let fields = fields(table, "new");
    let sql = format!(
        "create or replace function torture.version_of_{table}() returns trigger
         language plpgsql security definer set search_path = '' as $$ begin
           if tg_op = 'DELETE' or tg_op = 'UPDATE' and old.id <> new.id then
             insert into torture.versions (tbl, id) values ('{table}', old.id);
           end if;
           if tg_op <> 'DELETE' then
             insert into torture.versions (tbl, id, fields) values ('{table}', new.id, {fields});
           end if;
           return null;
         end $$;
         drop trigger if exists torture_version on {table};
         create trigger torture_version after insert or update or delete on {table}
           for each row execute function torture.version_of_{table}();
         alter table {table} enable always trigger torture_version;"
    );
    conn.execute(AssertSqlSafe(sql)).await?;
    Ok(())
}

/// Returns SQL that records the rows `which` as they are now, for a transaction that changes values without triggers.
pub(crate) fn record_all(table: &str, which: &str) -> String {
    let fields = fields(table, "r");
    format!(
        "insert into torture.versions (tbl, id, fields) select '{table}', r.id, {fields} from {table} r where {which}"
    )
}

/// Returns SQL that records the rows `which` as gone, for a transaction that then removes them without triggers.
pub(crate) fn record_gone(table: &str, which: &str) -> String {
    format!("insert into torture.versions (tbl, id) select '{table}', r.id from {table} r where {which}")
}

/// The effect of a change to a table on its exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Consequence {
    /// Exports of changes may be refused.
    Refused,
    /// The same, until the next `Refused` or `RefusedUntilNext` move.
    RefusedUntilNext,
    /// Deltas are refused until a full export, even after an incremental one. The table has a new file, too.
    Emptied,
    /// Nothing, unless another change of the catalog comes with it. A rewrite of the values then looks the same.
    NewFile,
    /// Nothing, unless a new file comes with it, or a second rename gives the column its own name back. Nothing then
    /// explains the new version of the column's row in the catalog.
    Renamed,
    /// Nothing, unless a new file comes with it or later. The first such file has the column's default in its rows.
    Added,
    /// As `Refused`, and for later exports as `Added`: the new column has a default.
    Replaced,
}

/// Returns SQL that records a move on a table.
pub(crate) fn move_made(table: &str, what: &str, consequence: Consequence) -> String {
    format!("insert into torture.moves (tbl, what, consequence) values ('{table}', '{what}', '{consequence:?}')")
}

#[derive(sqlx_macros::FromRow)]
pub(crate) struct MoveMade {
    xid: i64,
    pub(crate) tbl: String,
    #[sqlx(json)]
    consequence: Consequence,
}

impl MoveMade {
    fn is_seen(&self, by: &Snapshot) -> bool {
        by.sees(self.xid)
    }
}

pub(crate) async fn moves(conn: &mut PgConnection) -> Result<Vec<MoveMade>> {
    let made = sqlx::query_as(
        "select xid::text::bigint as xid, tbl, to_jsonb(consequence) as consequence from torture.moves order by seq",
    );
    Ok(made.fetch_all(conn).await?)
}

/// For each completed or skipped export: the transaction, and the snapshot of its lane's position then, if it has one.
pub(crate) type Commits = HashMap<ExportId, (i64, Option<String>)>;

pub(crate) async fn commits(conn: &mut PgConnection) -> Result<Commits> {
    let recorded: Vec<(uuid::Uuid, String, i64, Option<String>)> = sqlx::query_as(
        "select s.job, lane, xid::text::bigint, p.snapshot
         from torture.steps s left join torture.positions p using (xid, lane) where s.became in ('completed', 'skipped')",
    )
    .fetch_all(conn)
    .await?;
    Ok(recorded.into_iter().map(|(job, lane, xid, snapshot)| ((job, lane), (xid, snapshot))).collect())
}

/// The snapshots at the claims of a lane's last exports.
#[derive(Default)]
pub(crate) struct Since {
    pub(crate) any: Option<Snapshot>,
    /// The snapshot of the last export that included deletions.
    pub(crate) deletions: Option<Snapshot>,
}

/// Returns true if an export of this kind, refused at `now`, may see a change to its table since the claims.
pub(crate) fn has_moved(moves: &[MoveMade], table: &str, kind: &str, since: &Since, now: &Snapshot) -> bool {
    use Consequence::{Added, Emptied, NewFile, Refused, RefusedUntilNext, Renamed, Replaced};
    let is_new_since =
        |since: &Option<Snapshot>, made: &MoveMade| since.as_ref().is_none_or(|since| !made.is_seen(since));
    let is_new = |made: &MoveMade| is_new_since(&since.any, made);
    let seen = || moves.iter().filter(|made| made.tbl == table && made.is_seen(now));
    let mut refusing =
        seen().filter(|made| matches!(made.consequence, Refused | RefusedUntilNext | Replaced)).peekable();
    while let Some(made) = refusing.next() {
        let lasts = made.consequence == RefusedUntilNext && refusing.peek().is_none_or(|next| is_new(next));
        if lasts || is_new(made) {
            return true;
        }
    }
    if kind == "delta" && seen().any(|made| made.consequence == Emptied && is_new_since(&since.deletions, made)) {
        return true;
    }
    if seen().filter(|made| made.consequence == Renamed && is_new(made)).count() > 1 {
        return true;
    }
    // A column that was dropped and added again is another one. No file has that column of `users`.
    let was_replaced = seen().filter(|made| made.consequence == Added && is_new(made)).count() > 1;
    if was_replaced && table == "shapes" {
        return true;
    }
    let is_like_a_rewrite =
        seen().any(|made| matches!(made.consequence, Added | Replaced) || made.consequence == Renamed && is_new(made));
    is_like_a_rewrite && seen().any(|made| matches!(made.consequence, NewFile | Emptied) && is_new(made))
}

/// A row's columns by name, as the service writes them.
pub(crate) type Row = BTreeMap<String, String>;

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Snapshot {
    xmin: i64,
    pub(crate) xmax: i64,
    pub(crate) open: Vec<i64>,
}

impl TryFrom<String> for Snapshot {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Snapshot> {
        let mut parts = text.split(':');
        let mut number = || parts.next().and_then(|part| part.parse().ok());
        let (xmin, xmax) = number().zip(number()).with_context(|| format!("no snapshot: {text}"))?;
        let open = parts.next().unwrap_or_default().split(',').filter_map(|xid| xid.parse().ok()).collect();
        Ok(Snapshot { xmin, xmax, open })
    }
}

impl Snapshot {
    pub(crate) fn sees(&self, xid: i64) -> bool {
        xid < self.xmin || xid < self.xmax && !self.open.contains(&xid)
    }
}

/// The state in which a transaction left a row. `row` is `None` if the row is deleted, softly or not.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) row: Option<Arc<Row>>,
    pub(crate) xid: i64,
}

pub(crate) type Versions = BTreeMap<i64, Vec<Version>>;

pub(crate) async fn versions(conn: &mut PgConnection) -> Result<BTreeMap<String, Versions>> {
    // If a transaction wrote a row more than once, others see the last version. Writers of one row wait for each other,
    // so the numbers of its versions are in the order of its commits.
    let recorded: Vec<(String, i64, i64, Option<Json<Row>>)> = sqlx::query_as(
        "select tbl, id, xid::text::bigint, fields
         from (select distinct on (tbl, id, xid) * from torture.versions order by tbl, id, xid, seq desc) last
         order by tbl, id, seq",
    )
    .fetch_all(conn)
    .await?;
    let mut versions = BTreeMap::<String, Versions>::new();
    for (table, id, xid, fields) in recorded {
        let row = fields.map(|Json(row)| Arc::new(row));
        versions.entry(table).or_default().entry(id).or_default().push(Version { row, xid });
    }
    Ok(versions)
}

/// The number of rows that a transaction wrote or deleted. A row counts each time that it is written.
#[derive(sqlx_macros::FromRow)]
pub(crate) struct Written {
    pub(crate) tbl: String,
    pub(crate) xid: i64,
    pub(crate) rows: i64,
}

pub(crate) async fn written(conn: &mut PgConnection) -> Result<Vec<Written>> {
    let written = sqlx::query_as(
        "select tbl, xid::text::bigint as xid, count(*) as rows from torture.versions group by tbl, xid order by tbl, xid",
    );
    Ok(written.fetch_all(conn).await?)
}

pub(crate) async fn table(conn: &mut PgConnection, table: &str) -> Result<BTreeMap<i64, Row>> {
    let fields = fields(table, "r");
    let sql = format!(
        "select id, fields from (select r.id, {fields} as fields from {table} r) rows where fields is not null"
    );
    let rows: Vec<(i64, Json<Row>)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(conn).await?;
    Ok(rows.into_iter().map(|(id, Json(row))| (id, row)).collect())
}

/// Returns the time at which the machine was started. Recorded times are uptimes.
pub(crate) fn booted() -> Result<DateTime<Utc>> {
    let text = std::fs::read_to_string("/proc/uptime").context("the torture needs Linux")?;
    let up: f64 = text.split(' ').next().and_then(|up| up.parse().ok()).context("/proc/uptime")?;
    Ok(Utc::now() - TimeDelta::microseconds((up * 1e6) as i64))
}

/// One change of an export's status or lease, or that its file got its name (`became` is `published`).
#[derive(sqlx_macros::FromRow)]
pub(crate) struct Step {
    pub(crate) at: DateTime<Utc>,
    /// Taken in the transaction of the step.
    #[sqlx(json)]
    pub(crate) snapshot: Snapshot,
    pub(crate) job: uuid::Uuid,
    pub(crate) lane: String,
    pub(crate) lane_sequence: Option<i64>,
    pub(crate) was: Option<String>,
    pub(crate) became: String,
    pub(crate) token_was: Option<uuid::Uuid>,
    pub(crate) token: Option<uuid::Uuid>,
    pub(crate) owner: Option<String>,
    pub(crate) staged: Option<String>,
    pub(crate) code: Option<String>,
}

impl Step {
    pub(crate) fn export(&self) -> ExportId {
        (self.job, self.lane.clone())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) owner: String,
    pub(crate) claimed: DateTime<Utc>,
    /// The snapshot at the claim. The export sees at least as much.
    pub(crate) saw: Snapshot,
    /// The time of the end, and the job's status then, or `refused` if the job failed with `full_export_needed`.
    pub(crate) ended: Option<(DateTime<Utc>, String)>,
}

pub(crate) type Attempts = BTreeMap<uuid::Uuid, Attempt>;

/// Attempts that ended by a fault: see [`deaths`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Deaths {
    pub(crate) of: BTreeMap<&'static str, usize>,
    /// Attempts ended only by the early end of their leases.
    pub(crate) leases_ended: usize,
    /// Attempts ended without a fault: the machine was so busy that a lease ran out.
    pub(crate) unexplained: usize,
}

impl Deaths {
    pub(crate) fn total(&self) -> usize {
        self.of.values().sum()
    }
}

pub(crate) struct History {
    pub(crate) steps: Vec<Step>,
    pub(crate) attempts: Attempts,
}

impl History {
    pub(crate) async fn read(conn: &mut PgConnection) -> Result<History> {
        let steps = sqlx::query_as(
            "select $1::timestamptz + up * interval '1 s' as at, to_jsonb(snapshot) as snapshot,
               s.job, s.lane, s.lane_sequence, was, became, token_was, token, owner, staged,
               case when became = 'failed' then e.error_code end as code
             from torture.steps s left join torture.exports e on (e.job, e.lane) = (s.job, s.lane) order by seq",
        );
        let steps: Vec<Step> = steps.bind(booted()?).fetch_all(conn).await?;
        let mut attempts = Attempts::new();
        for step in steps.iter().filter(|step| !["published", "moved"].contains(&step.became.as_str())) {
            if let Some(attempt) = step.token_was.and_then(|token| attempts.get_mut(&token)) {
                let refused = step.code.as_deref() == Some("full_export_needed");
                let became = if refused { "refused" } else { step.became.as_str() };
                attempt.ended = Some((step.at, became.to_owned()));
            }
            if let Some(token) = step.token {
                let (owner, saw) = (step.owner.clone().unwrap_or_default(), step.snapshot.clone());
                attempts.insert(token, Attempt { owner, claimed: step.at, saw, ended: None });
            }
        }
        Ok(History { steps, attempts })
    }
}

/// Counts the attempts that died, by fault: an act met their replica, or all replicas, while they ran. Attempts that
/// were completed, skipped or cancelled, or ended with `full_export_needed`, didn't die. An act lasts until it is over.
/// The later one of two acts counts. An early end of a lease harms no process or connection, so it is no death.
pub(crate) fn deaths(attempts: &Attempts, replicas: &[Replica], report: &Report) -> Deaths {
    let acts = report.acts();
    let mut deaths = Deaths::default();
    for attempt in attempts.values() {
        let Some((ended, became)) = &attempt.ended else { continue };
        if ["completed", "skipped", "cancelled", "refused"].contains(&became.as_str()) {
            continue;
        }
        let met = |act: &&Done| {
            act.from <= *ended
                && act.to >= attempt.claimed
                && act.replica.is_none_or(|index| replicas[index].is(&attempt.owner))
        };
        let met: Vec<&Done> = acts.iter().filter(met).collect();
        let harm = met.iter().filter(|act| act.what != EXPIRE).max_by_key(|act| act.from);
        match (harm, met.is_empty()) {
            (Some(act), _) => *deaths.of.entry(act.what).or_default() += 1,
            (None, false) => deaths.leases_ended += 1,
            (None, true) => deaths.unexplained += 1,
        }
    }
    deaths
}

fn has_committed(became: &str) -> bool {
    ["completed", "skipped"].contains(&became)
}

/// Counts the stops during which somebody else ended an attempt of the stopped process.
pub(crate) fn zombies(attempts: &Attempts, report: &Report) -> usize {
    let stops = report.stops();
    // In this time, the process itself may still do what was under way when the signal came.
    let under_way = TimeDelta::milliseconds(300);
    let woken = stops.iter().filter(|stop| {
        attempts.values().any(|attempt| {
            let taken_over = attempt
                .ended
                .as_ref()
                .is_some_and(|(at, became)| *at > stop.from + under_way && *at < stop.to && !has_committed(became));
            taken_over && attempt.claimed < stop.from && Replica::owns(stop.pid.as_raw(), &attempt.owner)
        })
    });
    woken.count()
}
