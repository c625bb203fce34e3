//! The target's table of a lane, which only `apply` makes and alters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::apply::statement::run;
use crate::apply::{During, Error, INSPECT_TABLE, TargetPosition, TargetSettings, ownership};
use cdc_manifest::{Chained, ManifestColumn};
use pg_session::quoted;
use pg_session::table_name::Table;

/// A table, locked until the end of the transaction.
pub(super) struct TargetTable {
    /// Its name, as SQL.
    pub(super) name: String,
    pub(super) oid: i64,
    pub(super) columns: BTreeMap<String, TargetColumn>,
    /// The columns of its primary key, in their order.
    pub(super) key: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TargetColumn {
    /// The attribute number. A column that is removed and added again has another number.
    number: i16,
    /// The type with length and precision, as Postgres writes it.
    pub(super) type_name: String,
}

#[derive(sqlx_macros::FromRow)]
struct FoundColumn {
    name: String,
    number: i16,
    type_name: String,
    key_place: Option<i32>,
}

/// Returns the column with the operation on the row: the first one of a delta.
pub(super) fn operation(export: &Chained) -> Option<&ManifestColumn> {
    export.columns.first().filter(|_| export.export_type == "delta")
}

/// Returns the columns of the export that are columns of the table: all but the operation of a delta and, unless they
/// are kept, the columns of `meta`.
pub(super) fn target_columns<'e>(
    export: &'e Chained,
    settings: &TargetSettings,
) -> impl Iterator<Item = &'e ManifestColumn> + use<'e> {
    let (operations, keeps_meta) = (usize::from(operation(export).is_some()), settings.keeps_meta);
    export.columns.iter().skip(operations).filter(move |column| keeps_meta || column.meta.is_none())
}

/// Returns a table's name as SQL.
pub(super) fn relation(table: &Table) -> String {
    let schema = table.schema.as_ref().map(|schema| format!("{}.", quoted(schema))).unwrap_or_default();
    format!("{schema}{}", quoted(&table.name))
}

impl TargetTable {
    /// Locks the table of a lane. Returns `None` if the lane has no table yet, and the name is free.
    pub(super) async fn lock(
        conn: &mut PgConnection,
        table: &Table,
        before: Option<&TargetPosition>,
    ) -> Result<Option<TargetTable>, Error> {
        if require_own(conn, table, before).await?.is_none() {
            return Ok(None);
        }
        let lock = format!("lock table {} in row exclusive mode", relation(table));
        run(conn, "table.lock", &lock).await.during("to lock the table")?;
        // The table may have changed before the lock.
        let Some(oid) = require_own(conn, table, before).await? else { return Ok(None) };
        Ok(Some(TargetTable::read(conn, table, oid).await?))
    }

    pub(super) async fn read(conn: &mut PgConnection, table: &Table, oid: i64) -> Result<TargetTable, Error> {
        let mut target_table = TargetTable { name: relation(table), oid, columns: BTreeMap::new(), key: Vec::new() };
        target_table.refresh(conn).await?;
        Ok(target_table)
    }

    pub(super) async fn refresh(&mut self, conn: &mut PgConnection) -> Result<(), Error> {
        let mut found: Vec<FoundColumn> = sqlx::query_as(
            "-- apply.table.columns
             select a.attname::text as name, a.attnum as number, array_position(i.indkey::int2[], a.attnum) as key_place,
               format_type(a.atttypid, a.atttypmod)
                 || case when a.attcollation = t.typcollation then '' else ' of another collation' end as type_name
             from pg_attribute a
             join pg_type t on t.oid = a.atttypid
             left join pg_index i on i.indrelid = a.attrelid and i.indisprimary
             where a.attrelid = $1::int8::oid and a.attnum > 0 and not a.attisdropped",
        )
        .bind(self.oid)
        .fetch_all(conn)
        .await
        .during(INSPECT_TABLE)?;
        found.sort_by_key(|column| column.key_place);
        let key = found.iter().filter(|column| column.key_place.is_some());
        self.key = key.map(|column| column.name.clone()).collect();
        let column = |FoundColumn { name, number, type_name, .. }| (name, TargetColumn { number, type_name });
        self.columns = found.into_iter().map(column).collect();
        Ok(())
    }

    /// Returns the reason if the export can't follow, because the table differs from what the last export has left.
    pub(super) fn obstacle(&self, export: &Chained, before: &TargetPosition) -> Option<String> {
        if export.is_base() {
            return Some(format!("{} has rows of earlier exports, which this one doesn't follow", self.name));
        }
        if self.key != export.key {
            let (key, had) = (export.key.join(", "), self.key.join(", "));
            return Some(format!("the export's key is ({key}), and the primary key of {} is ({had})", self.name));
        }
        before.details.table.iter().find_map(|(name, had)| match self.columns.get(name) {
            None => Some(format!("the column {name} of the table is gone")),
            Some(found) if found != had => Some(format!(
                "somebody has changed the column {name} of {}, or has removed it and added it again",
                self.name
            )),
            Some(_) => None,
        })
    }

    /// Returns the name of the temporary table that the export's rows are loaded into first.
    pub(super) fn stage_name(&self) -> String {
        format!("cdc_apply_stage_{}", self.oid)
    }

    /// Returns that table as SQL.
    pub(super) fn stage_table(&self) -> String {
        format!("pg_temp.{}", self.stage_name())
    }
}

/// Returns the oid of the table, or `None` if the lane has no table yet, and the name is free.
///
/// # Errors
/// If the table isn't the one that `apply` has made for the lane, or can't be written to as it is.
pub(super) async fn require_own(
    conn: &mut PgConnection,
    table: &Table,
    before: Option<&TargetPosition>,
) -> Result<Option<i64>, Error> {
    let found = ownership::find(conn, table).await?;
    match (found, before) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            let why = format!(
                "{table} was dropped or renamed: give it its name again, or remove its row of cdc_apply.positions, and a full export makes \
                 the table again"
            );
            Err(Error::refused("target_changed", why))
        }
        (Some(found), Some(before)) if found.oid == before.oid => {
            found.require_plain(table)?;
            Ok(Some(found.oid))
        }
        (Some(_), before) => {
            let mut why =
                format!("{table} is there, and apply has not made it: rename it, or use --table to name another one");
            // A restore from a dump makes the table with another oid.
            if before.is_some() {
                let [name, target] = [relation(table), table.to_string()].map(|name| name.replace('\'', "''"));
                why += &format!(
                    ". After a restore from a dump that has cdc_apply too, say that it is the one: \
                     update cdc_apply.positions set oid = '{name}'::regclass where target = '{target}'"
                );
            }
            Err(Error::refused("table_taken", why))
        }
    }
}
