//! Subscriptions whose parallel workers write to a tracked table through a partitioned one (Postgres 16 to 18).
//!
//! Such a worker warns of each row for which a trigger of the partition fires, as ours does: `resource was not closed`.
//! The warnings fill the queue to the subscription's main worker, which reads none while it waits for the end of the
//! transaction: both wait for ever. A worker that writes to the partition itself doesn't warn.

use sqlx::PgConnection;

use crate::quote::{quoted, relation};
use cdc_dataset::{Dataset, Fault};

const FIRST: u32 = 160_000;

/// The subscriptions with parallel workers that write to a partitioned table of these datasets, each with its remedy.
pub(super) async fn read_stalling(conn: &mut PgConnection, datasets: &[&Dataset]) -> Result<Vec<Fault>, sqlx::Error> {
    if datasets.is_empty() || conn.server_version_num().is_none_or(|version| version < FIRST) {
        return Ok(Vec::new());
    }
    let stalling: Vec<(i64, String)> = sqlx::query_as(
        "-- source.parallel_apply.find
         select input.place, s.subname::text from unnest($1) with ordinality as input (name, place)
         join pg_class t on t.oid = cdc_export.table_of_role(input.name) and t.relkind = 'p'
         join pg_subscription s on s.substream = 'p'
           and s.subdbid = (select d.oid from pg_database d where d.datname = current_database())
         where exists (
           with recursive tree (oid) as (
             select t.oid union all select i.inhrelid from tree join pg_inherits i on i.inhparent = tree.oid)
           select from tree join pg_subscription_rel r on r.srrelid = tree.oid and r.srsubid = s.oid
           join pg_class c on c.oid = tree.oid and c.relkind = 'p')
         order by input.place, s.subname",
    )
    .bind(datasets.iter().map(|dataset| relation(&dataset.table)).collect::<Vec<_>>())
    .fetch_all(conn)
    .await?;
    let fault = |(place, name): (i64, String)| {
        let why = format!(
            "the subscription {name} writes to it with parallel workers, which may wait for ever where a partitioned table has triggers: \
             its owner runs `alter subscription {} set (streaming = on)`",
            quoted(&name)
        );
        Fault::of(datasets[place as usize - 1], "table", why)
    };
    Ok(stalling.into_iter().map(fault).collect())
}
