//! The purge of the change log: what every consumer has seen goes, and who holds too much of it loses its position.
//!
//! Knows no consumer but as a position that pins the log.

use std::time::Duration;

use sqlx::PgPool;

use crate::source::{Error, Source};

/// How much of the log a consumer may hold that doesn't export.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Rows logged since its last export.
    pub rows: u64,
    /// Time since its last export.
    pub age: Duration,
}

impl Source {
    /// Removes what every consumer has seen from the change log; see [`purge`].
    pub async fn purge(&self, caps: &Caps) -> Result<u64, Error> {
        purge(&self.pool, caps).await.map_err(Error::of("cdc_export.change_log"))
    }
}

/// Rows of one purging statement. A purge that removes fewer has removed all that it may.
pub const PURGE_ROWS: u64 = 50_000;

/// Gives up the positions of consumers that hold too much of the log, then removes what every other consumer has seen. Returns the
/// number of rows removed; call it again while there are some.
///
/// A position loses its deletions first, counted from its last delta or full export: its incremental exports stay exact, and
/// its next delta asks for a full one. At twice the caps, counted from its last export, it loses the rest.
pub async fn purge(pool: &PgPool, caps: &Caps) -> Result<u64, sqlx::Error> {
    let mut tx = pool.begin().await?;
    // The purge has to get to its end even where a mass of dead rows slows it down.
    sqlx::raw_sql("-- source.purge.timeout\n set local statement_timeout = '60s'").execute(&mut *tx).await?;
    let mine = sqlx::query(
        "-- source.purge.one_purger
         select from cdc_export.locks where name = 'purge' for update skip locked",
    )
    .fetch_optional(&mut *tx)
    .await?;
    if mine.is_none() {
        return Ok(0);
    }
    let given_up: Vec<(String, String)> = sqlx::query_as(
        "-- source.purge.give_up
         update watermarks w
         set deletions_snapshot = null, live_snapshot = case when held.live >= 2 then null else live_snapshot end,
             log_lost = case when held.live >= 2 then 'all' else 'deletions' end, version = version + 1
         from (
           select p.id,
             greatest((log.sequence - p.log_sequence)::float8 / $1, extract(epoch from clock_timestamp() - p.saved_at)::float8 / $2) as live,
             -- Incremental exports alone would hold the deletions, and the log with them, for ever.
             greatest((log.sequence - p.deletions_log_sequence)::float8 / $1,
               extract(epoch from clock_timestamp() - p.deletions_saved_at)::float8 / $2) as deletions
           from watermarks p
           cross join (select coalesce(pg_sequence_last_value(pg_get_serial_sequence('cdc_export.change_log', 'sequence')::regclass), 0)
                         as sequence) log
           where coalesce(p.live_snapshot, p.deletions_snapshot) is not null) held
         where w.id = held.id and (held.live >= 2 or w.deletions_snapshot is not null and greatest(held.live, held.deletions) >= 1)
         returning w.consumer_id, w.log_lost",
    )
    .bind(caps.rows.max(1) as f64)
    .bind(caps.age.as_secs_f64().max(1.0))
    .fetch_all(&mut *tx)
    .await?;
    // Bounded by the smallest xmax of what is held, not by an xmin: one idle writer must not pin the log. Nobody needs what this
    // statement sees and no hold shields: a hold that it doesn't see yet is of an export whose snapshot is still to be taken. A
    // row that is seen can't come from the future but with a dump of another cluster, whose transactions were further on.
    let purged = sqlx::query(
        "-- source.purge.purge
         with held as materialized (
           -- As texts, since snapshots can't be compared.
           select snap::pg_snapshot as snap
           from (
             select coalesce(deletions_snapshot, live_snapshot)::text as snap from watermarks
             union
             select purge_hold::text from exports where status = 'processing') texts
           where snap is not null),
         bounds as (
           -- Not min(xid8), which Postgres has since 15.
           select coalesce((select pg_snapshot_xmax(snap) as x from held order by x limit 1), here.xmax) as below,
             coalesce((select pg_snapshot_xmin(snap) as x from held order by x limit 1), here.xmax) as seen_by_all,
             here.xmax as future
           from (select pg_snapshot_xmax(pg_current_snapshot()) as xmax) here)
         delete from cdc_export.change_log where ctid = any (array(
           select l.ctid from cdc_export.change_log l, bounds b
           where l.xid < b.below
               and (l.xid < b.seen_by_all or not exists (select from held h where not pg_visible_in_snapshot(l.xid, h.snap)))
             or l.xid >= b.future
           limit $1))",
    )
    .bind(PURGE_ROWS as i64)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    for (consumer, lost) in given_up {
        tracing::warn!(event = "position_given_up", consumerId = consumer, lost);
    }
    Ok(purged.rows_affected())
}
