//! The datasets that processes have, with the table of each.

use crate::catalog::pattern::UsedNames;
use crate::store::{Error, Store};
use pg_session::table_name::Table;

impl Store {
    /// Returns the names that have exports or keys, with the tables that they belong to.
    pub async fn used_names(&self) -> Result<UsedNames, Error> {
        let rows: Vec<(String, String, String)> = self
            .with(async |conn| {
                sqlx::query_as(
                    "-- store.datasets.used
                     select d.name, d.schema_name, d.table_name
                     from cdc_export.datasets d
                     where d.name in (select l.dataset from cdc_export.lanes l)
                       or d.name in (select unnest(k.datasets) from cdc_export.keys k where k.revoked_at is null)",
                )
                .fetch_all(conn)
                .await
            })
            .await?;
        Ok(rows.into_iter().map(|(name, schema, table)| (name, Table { schema: Some(schema), name: table })).collect())
    }

    /// Returns the datasets that have positions and are none of these, with the tables that they belonged to.
    pub async fn positions_without_dataset(&self, own: &[String]) -> Result<Vec<(String, Option<Table>)>, Error> {
        let statement = sqlx::query_as(
            "-- store.datasets.positions_without_dataset
             select distinct w.dataset, d.schema_name, d.table_name
             from watermarks w left join cdc_export.datasets d on d.name = w.dataset
             where w.dataset <> all ($1) order by w.dataset",
        );
        let rows: Vec<(String, Option<String>, Option<String>)> =
            self.with(async |conn| statement.bind(own).fetch_all(conn).await).await?;
        let table = |schema, name: Option<String>| name.map(|name| Table { schema, name });
        Ok(rows.into_iter().map(|(dataset, schema, name)| (dataset, table(schema, name))).collect())
    }

    /// Records that this process has these datasets, unless that was recorded within the last hour.
    pub async fn record_datasets(&self, tables: &[(&str, Table)]) -> Result<(), Error> {
        let names: Vec<_> = tables.iter().map(|(name, _)| *name).collect();
        let schemas: Vec<_> = tables.iter().map(|(_, table)| table.schema.as_deref()).collect();
        let table_names: Vec<_> = tables.iter().map(|(_, table)| table.name.as_str()).collect();
        let statement = sqlx::query(include_str!("datasets/record.sql"));
        self.execute(statement.bind(names).bind(schemas).bind(table_names)).await.map(drop)
    }

    /// Makes the records of all other datasets so old that ten minutes later they count as gone. A process that has one
    /// of them records it within a minute.
    pub async fn age_other_datasets(&self, own: &[String]) -> Result<(), Error> {
        let statement = sqlx::query(
            "-- store.datasets.age_others
             with others as (
               select d.name from cdc_export.datasets d
               where d.name <> all ($1) and d.seen_at > clock_timestamp() - interval '110 minutes'
               order by d.name for update)
             update cdc_export.datasets d set seen_at = clock_timestamp() - interval '110 minutes'
             from others where d.name = others.name",
        );
        self.execute(statement.bind(own)).await.map(drop)
    }
}
