//! Where consumers stand, seen from the table: how much has changed since, and whether that can be told exactly.

use sqlx::{AssertSqlSafe, Row};

use crate::dataset::Dataset;
use crate::job::Continuity;
use crate::source::Error;
use crate::source::guard::{continuity, here};
use crate::source::select::quoted;
use crate::source::snapshot::Source;
use crate::watermark::{COUNTED_ROWS, Standing};

impl Source {
    /// The standings of everybody who has a watermark or ever asked for an export, in the order of their ids, `limit` of them at
    /// most, those after `after`.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn standings(&self, dataset: &Dataset, after: Option<&str>, limit: u32) -> Result<Vec<Standing>, Error> {
        let (table, key, updated_at) = (quoted(dataset.table), quoted(dataset.key), quoted(dataset.updated_at));
        let statement = format!(
            "-- source.standing.list
             select k.consumer_id, w.last_exported_at, waiting.rows as rows_waiting, {} as continuity
             from (
               select consumer_id from watermarks where dataset = $1 and ($2::text is null or consumer_id > $2)
               union
               -- Exports without a consumer have a row too, under a name that no consumer has.
               select consumer_id from cdc_export.lanes
               where dataset = $1 and ($2::text is null or consumer_id > $2) and consumer_id <> ''
               order by consumer_id limit $3) k
             left join watermarks w on w.consumer_id = k.consumer_id and w.dataset = $1
             cross join pg_control_system() c
             left join pg_class t on t.oid = to_regclass($4)
             left join pg_namespace n on n.oid = t.relnamespace
             cross join lateral {} here
             cross join lateral (select count(*) as rows from (
               (select distinct pk from cdc_export.change_log
                where tbl = t.oid and pk is not null and xid >= pg_snapshot_xmin(w.snap_live)
                  and not pg_visible_in_snapshot(xid, w.snap_live) limit $5)
               union
               (select u.{key}::text from {table} u
                where w.last_exported_at is null and w.snap_live is null
                   or u.{updated_at} > w.last_exported_at and (u.{updated_at} < '200000-01-01 00:00:00+00' or w.snap_live is null)
                limit $5)
               limit $5) changed) waiting
             order by k.consumer_id",
            continuity!(),
            here!()
        );
        let rows = sqlx::query(AssertSqlSafe(statement))
            .bind(dataset.name)
            .bind(after)
            .bind(i64::from(limit))
            .bind(&table)
            .bind(COUNTED_ROWS as i64 + 1)
            .fetch_all(self.pool())
            .await
            .map_err(Error::of(dataset.table))?;
        let failed = Error::of(dataset.table);
        let standing = |row: sqlx::postgres::PgRow| {
            let consumer: String = row.try_get("consumer_id").map_err(&failed)?;
            let word: Option<String> = row.try_get("continuity").map_err(&failed)?;
            let rows: i64 = row.try_get("rows_waiting").map_err(&failed)?;
            Ok(Standing {
                consumer: consumer.parse().map_err(|_| Error::Protocol("a consumer id that is none"))?,
                last_exported_at: row.try_get("last_exported_at").map_err(&failed)?,
                rows_waiting: Some(rows.unsigned_abs()).filter(|rows| *rows <= COUNTED_ROWS),
                continuity: Continuity::of_guard(word.as_deref()).map_err(|_| Error::Protocol("an unknown word"))?,
            })
        };
        rows.into_iter().map(standing).collect()
    }
}
