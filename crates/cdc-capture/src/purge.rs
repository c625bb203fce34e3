//! The purge of the change log: removes the rows that every consumer of their table has seen, and gives up the
//! positions that hold too much of the log.
//!
//! Knows no consumer but as a position that holds the log.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::watermark::LogUse;
use crate::{Error, Source};
use pg_session::failure::SqlFailure;
use pg_session::statement::with_pieces;

/// The part of the change log that positions may hold.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// The bytes of rows that all positions together may hold, by an estimate. Positions that are in use may hold twice
    /// as many.
    pub bytes: u64,
    /// The time since its last export for which a position holds deletions. It holds other changes for twice that time.
    pub age: Duration,
    /// The present time. `None`: no clock is believed, so no position is too old, and all of them may hold twice as
    /// many bytes.
    pub now: Option<DateTime<Utc>>,
}

/// A position that was given up: the consumer, the dataset, the lost part of the log, and the limit that was reached.
type GivenUp = (String, String, String, String);

const LOG: &str = "cdc_export.change_log";
const HELD: (&str, &str) = ("purge/held.sql", include_str!("purge/held.sql"));
const FURTHEST: (&str, &str) = ("purge/furthest.sql", include_str!("purge/furthest.sql"));

impl Source {
    /// Removes the rows of the change log that every consumer has seen; see [`Caps::purge`].
    pub async fn purge(&self, caps: &Caps) -> Result<u64, Error> {
        self.with(LOG, async |conn| caps.purge(conn).await).await
    }

    pub async fn held_log_bytes(&self) -> Result<u64, Error> {
        let statement = with_pieces(include_str!("purge/held_bytes.sql"), &[FURTHEST, HELD]);
        let statement = sqlx::query_scalar(AssertSqlSafe(statement));
        let bytes: i64 = self.with(LOG, async |conn| statement.fetch_one(conn).await).await?;
        Ok(bytes.unsigned_abs())
    }

    /// Returns the use of the change log by the positions of these consumers, each in the dataset with the same place,
    /// if all positions may hold `max_bytes`. A lane without a position that holds the log is left out.
    pub async fn log_use(&self, max_bytes: u64, consumers: &[&str], datasets: &[&str]) -> Result<Vec<LogUse>, Error> {
        let statement = with_pieces(include_str!("purge/use_of_log.sql"), &[FURTHEST, HELD]);
        let statement = sqlx::query_as(AssertSqlSafe(statement)).bind(max_bytes as i64).bind(consumers).bind(datasets);
        let rows: Vec<(String, String, i64, i64)> =
            self.with(LOG, async |conn| statement.fetch_all(conn).await).await?;
        let log_use = |(consumer_id, dataset, bytes, max_bytes): (String, String, i64, i64)| LogUse {
            consumer_id,
            dataset,
            bytes: bytes.unsigned_abs(),
            max_bytes: max_bytes.unsigned_abs(),
        };
        Ok(rows.into_iter().map(log_use).collect())
    }
}

impl Caps {
    /// Rows of one purging statement. A purge that removes fewer has removed all that it may.
    pub const PURGE_ROWS: u64 = 50_000;

    /// Gives up the positions that hold too much of the log, then removes the rows that all other positions have seen.
    /// Returns the number of rows removed; call it again while there are some.
    ///
    /// Whichever positions are given up, no row is removed that a position still holds.
    pub async fn purge(&self, conn: &mut PgConnection) -> Result<u64, sqlx::Error> {
        give_up(conn, self).await?;
        // The purge has to get to its end even where a mass of dead rows slows it down. The rows of a table come from
        // the index, whatever the planner guesses of how many there are. One session purges at a time: the lock of a
        // table takes no transaction id, unlike that of a row. Statements that are sent together are one transaction.
        let statements = format!(
            "-- source.purge.begin
             set local statement_timeout = '60s'; set local enable_seqscan = off; set local enable_bitmapscan = off;
             lock table cdc_export.locks in share update exclusive mode nowait; {}",
            include_str!("purge/purge.sql").replace("$1", &Caps::PURGE_ROWS.to_string())
        );
        match sqlx::raw_sql(AssertSqlSafe(statements)).execute(conn).await {
            Err(error) if SqlFailure::of(&error) == SqlFailure::LockTimeout => Ok(0),
            purged => Ok(purged?.rows_affected()),
        }
    }
}

/// Gives up the positions that hold too much of the log. Each statement is committed by itself: a removal that finds no
/// end, because of many dead rows, must not keep the log from its bounds.
async fn give_up(conn: &mut PgConnection, caps: &Caps) -> Result<(), sqlx::Error> {
    let mut given_up: Vec<GivenUp> = sqlx::query_as(include_str!("purge/give_up_old.sql"))
        .bind(caps.age.as_secs_f64().max(1.0))
        .bind(caps.now)
        .fetch_all(&mut *conn)
        .await?;
    // The rows that are kept have no more bytes than the files, whose size costs nothing to read.
    let may_be_large: bool = sqlx::query_scalar(
        "-- source.purge.may_be_large
         select pg_table_size('cdc_export.change_log') > $1",
    )
    .bind(caps.bytes as i64)
    .fetch_one(&mut *conn)
    .await?;
    if may_be_large {
        give_up_large(conn, caps, &mut given_up).await?;
    }
    for (consumer, dataset, lost, limit) in given_up {
        tracing::warn!(event = "position_given_up", consumerId = consumer, dataset, lost, limit);
    }
    Ok(())
}

/// Gives up positions of one table after the other, until the bound is kept or the fullest table has none to give up.
async fn give_up_large(conn: &mut PgConnection, caps: &Caps, given_up: &mut Vec<GivenUp>) -> Result<(), sqlx::Error> {
    let statement = with_pieces(include_str!("purge/give_up_large.sql"), &[HELD]);
    loop {
        let large = sqlx::query_as(AssertSqlSafe(statement.clone())).bind(caps.bytes as i64).bind(caps.now);
        let large: Vec<GivenUp> = large.fetch_all(&mut *conn).await?;
        if large.is_empty() {
            return Ok(());
        }
        given_up.extend(large);
    }
}
