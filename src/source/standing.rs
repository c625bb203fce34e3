//! Where consumers stand, seen from the table: how much has changed since, and whether that can be told exactly.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Row};

use crate::dataset::{Capture, Dataset};
use crate::job::Continuity;
use crate::source::guard::{continuity, here};
use crate::source::quote::relation;
use crate::source::select::{Select, logged};
use crate::source::snapshot::Source;
use crate::source::{Error, shape};
use crate::watermark::{COUNTED_ROWS, Standing, Waiting};

impl Source {
    /// The standings of these consumers in a dataset, in the order of their ids.
    ///
    /// # Errors
    /// If the database fails, or the table isn't as the dataset says.
    pub async fn standings(&self, dataset: &Dataset, consumers: &[&str]) -> Result<Vec<Standing>, Error> {
        let failed = Error::of(&dataset.table);
        let mut conn = self.pool().acquire().await.map_err(&failed)?;
        let shape = shape::look(&mut conn, dataset).await?;
        let select = Select { dataset, shape: &shape };
        let statement = format!(
            "-- source.standing.list
             select k.consumer_id, w.last_exported_at, waiting.rows as rows_waiting, {} as continuity
             from unnest($2::text[]) as k (consumer_id)
             left join watermarks w on w.consumer_id = k.consumer_id and w.dataset = $1
             cross join (select $5::boolean as by_triggers, $6::text[] as definition, $7::jsonb as types) wanted
             cross join pg_control_system() c
             left join pg_class t on t.oid = to_regclass($3)
             left join pg_namespace n on n.oid = t.relnamespace
             cross join lateral {} here
             cross join lateral (select count(*) as rows from (
               (select distinct {logged_key} from cdc_export.change_log
                where {logged} limit $4)
               union
               (select {key} from {table} u where {stated} limit $4)
               limit $4) changed) waiting
             order by k.consumer_id collate \"C\"",
            continuity!(),
            here!(),
            logged_key = select.logged_key().join(", "),
            logged = logged("t.oid", "w.snap_live"),
            key = select.keys_of("u").join(", "),
            // Rows of an overlap wait for nobody: they were exported before.
            stated = select.stated_since("w.last_exported_at", "w.last_exported_at", "w.snap_live"),
            table = relation(&shape.table),
        );
        let rows = sqlx::query(AssertSqlSafe(statement))
            .bind(&dataset.name)
            .bind(consumers)
            .bind(relation(&shape.table))
            .bind(COUNTED_ROWS as i64 + 1)
            .bind(dataset.capture == Capture::Triggers)
            .bind(dataset.definition().forms())
            .bind(Json(&shape.types))
            .fetch_all(&mut *conn)
            .await
            .map_err(&failed)?;
        let standing = |row: sqlx::postgres::PgRow| {
            let consumer: String = row.try_get("consumer_id").map_err(&failed)?;
            let word: Option<String> = row.try_get("continuity").map_err(&failed)?;
            let rows: i64 = row.try_get("rows_waiting").map_err(&failed)?;
            let rows_waiting = match rows.unsigned_abs() {
                rows if rows <= COUNTED_ROWS => Waiting::Exactly(rows),
                _ => Waiting::More,
            };
            Ok(Standing {
                consumer: consumer.parse().map_err(|_| Error::Protocol("a consumer id that is none"))?,
                dataset: dataset.name.clone(),
                last_exported_at: row.try_get("last_exported_at").map_err(&failed)?,
                rows_waiting,
                continuity: Continuity::of_guard(word.as_deref()).map_err(|_| Error::Protocol("an unknown word"))?,
            })
        };
        rows.into_iter().map(standing).collect()
    }
}
