//! Subscriptions whose parallel workers write to a tracked table through a partitioned one (Postgres 16 to 18).
//!
//! Such a worker warns of each row for which a trigger of the partition fires, as ours does: `resource was not closed`.
//! The warnings fill the queue to the subscription's main worker, which reads none while it waits for the end of the
//! transaction: both wait for ever. A worker that writes to the partition itself doesn't warn.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::quote::{quoted, relation};
use cdc_dataset::{Dataset, Fault};
use pg_session::statement::with_pieces;

const FIRST: u32 = 160_000;

/// The subscriptions with parallel workers that write to a partitioned table of these datasets, each with its remedy. A
/// managed server may hide `pg_subscription`: then all subscriptions that write to one, which the other catalogs show.
pub(super) async fn read_stalling(conn: &mut PgConnection, datasets: &[&Dataset]) -> Result<Vec<Fault>, sqlx::Error> {
    if datasets.is_empty() || conn.server_version_num().is_none_or(|version| version < FIRST) {
        return Ok(Vec::new());
    }
    let may_see: bool = sqlx::query_scalar(
        "-- source.parallel_apply.may_see
         select has_column_privilege('pg_subscription', 'oid', 'select')
           and has_column_privilege('pg_subscription', 'substream', 'select')",
    )
    .fetch_one(&mut *conn)
    .await?;
    let (is_parallel, writes) = match may_see {
        true => ("exists (select from pg_subscription p where p.oid = s.subid and p.substream = 'p')", "writes"),
        false => ("true", "may write"),
    };
    let find = with_pieces(include_str!("parallel_apply/find.sql"), &[("is_parallel", is_parallel)]);
    let stalling: Vec<(i64, String)> = sqlx::query_as(AssertSqlSafe(find))
        .bind(datasets.iter().map(|dataset| relation(&dataset.table)).collect::<Vec<_>>())
        .fetch_all(conn)
        .await?;
    let fault = |(place, name): (i64, String)| {
        let why = format!(
            "the subscription {name} {writes} to it with parallel workers, which may wait for ever where a partitioned table has \
             triggers: its owner runs `alter subscription {} set (streaming = on)`",
            quoted(&name)
        );
        Fault::of(datasets[place as usize - 1], "table", why)
    };
    Ok(stalling.into_iter().map(fault).collect())
}
