//! The purge of the change log: what every consumer has seen goes, and who holds too much of it loses its position.
//!
//! Knows no consumer but as a position that pins the log.

use std::time::Duration;

use sqlx::PgPool;

use crate::source::{Error, Source};

/// The share of the log that a consumer may hold without exporting.
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
        purge(self.pool.inner(), caps).await.map_err(Error::from_sql("cdc_export.change_log"))
    }
}

/// Rows of one purging statement. A purge that removes fewer has removed all that it may.
pub const PURGE_ROWS: u64 = 50_000;

/// Gives up the positions of consumers that hold too much of the log, then removes what every other consumer has
/// access. Returns the number of rows removed; call it again while there are some.
///
/// A position loses its deletions first, counted from its last delta or full export: its incremental exports stay
/// exact, and its next delta asks for a full one. At twice the caps, counted from its last export, it loses the rest.
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
    let given_up: Vec<(String, String)> = sqlx::query_as(include_str!("purge/give_up.sql"))
        .bind(caps.rows.max(1) as f64)
        .bind(caps.age.as_secs_f64().max(1.0))
        .fetch_all(&mut *tx)
        .await?;
    // Bounded by the smallest xmax of what is held, not by an xmin: one idle writer must not pin the log. Nobody needs
    // what this statement sees and no hold shields: a hold that it doesn't see yet is of an export whose snapshot is
    // still to be taken. A row that is seen can't come from the future but with a dump of another cluster, whose
    // transactions were further on.
    let purged = sqlx::query(include_str!("purge/purge.sql")).bind(PURGE_ROWS as i64).execute(&mut *tx).await?;
    tx.commit().await?;
    for (consumer, lost) in given_up {
        tracing::warn!(event = "position_given_up", consumerId = consumer, lost);
    }
    Ok(purged.rows_affected())
}
