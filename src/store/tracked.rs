//! Which datasets `track` has seen: of the others no consumer can have an export.

use serde_json::json;
use sqlx::types::Json;

use crate::dataset::{Capture, Dataset};
use crate::store::{Error, Store};

impl Store {
    /// The names of those datasets whose changes triggers shall capture, and for whose tables nobody ran `track`, or by another key than
    /// the catalog names. Triggers that are gone since are the guard's to find, and a table that isn't there is the export's.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn untracked(&self, datasets: impl IntoIterator<Item = &Dataset>) -> Result<Vec<String>, Error> {
        let by_triggers = datasets.into_iter().filter(|dataset| dataset.capture == Capture::Triggers);
        let wanted: Vec<_> = by_triggers
            .map(|Dataset { name, table, key, .. }| {
                json!({ "name": name, "in_schema": table.schema, "of_table": table.name, "key": key })
            })
            .collect();
        let mut conn = self.connection().await?;
        let untracked = sqlx::query_scalar(
            "-- store.tracked.untracked
             select d.name
             from jsonb_to_recordset($1) as d (name text, in_schema text, of_table text, key text[])
             cross join lateral (
               select cdc_export.table_of_role(
                 case when d.in_schema is null then format('%I', d.of_table) else format('%I.%I', d.in_schema, d.of_table) end) as oid) t
             join pg_class c on c.oid = t.oid
             join pg_namespace n on n.oid = c.relnamespace
             left join cdc_export.tracked k on k.schema_name = n.nspname and k.table_name = c.relname
             where k.table_name is null or k.key <> d.key
             order by d.name",
        )
        .bind(Json(wanted))
        .fetch_all(conn.get())
        .await?;
        conn.give_back();
        Ok(untracked)
    }
}
