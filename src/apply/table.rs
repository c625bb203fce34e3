//! The target's table: made as the source has it, or taken as it is, and altered as the source's columns change.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use crate::apply::catalog::{
    DEED, EQUAL, ExistingColumn, OPERATION, columns, exists, is_delta, is_empty, numbers, of_table, oid,
    references_itself, relation,
};
use crate::apply::key_type::tells_apart;
use crate::apply::statement::run;
use crate::apply::{Doing, Error, Settings, TargetPosition, alter};
use crate::connection::quoted;
use crate::dataset::Table;
use crate::manifest::{Chained, Manifest, ManifestColumn};

/// The temporary table that an export's rows are brought into first.
pub(super) const STAGE: &str = "cdc_apply_stage";

/// A table as it stands when an export is applied to it.
pub(super) struct TargetTable {
    /// Its name, as SQL.
    pub(super) table: String,
    /// The export's columns without `operation`, in their order.
    pub(super) columns: Vec<String>,
    /// Those of them that are written: not what the table generates by itself.
    pub(super) written: Vec<String>,
    /// Those of them that are updated: not the key's where it is an identity.
    pub(super) updated: Vec<String>,
    /// True if the table has columns that the export hasn't.
    pub(super) has_own: bool,
    /// Its number in the catalog.
    pub(super) oid: i64,
    /// Those of its columns that the export has.
    pub(super) numbers: BTreeMap<String, i16>,
    /// True if a row that goes may take others of the table with it.
    pub(super) references_itself: bool,
    /// The export's columns, each with the type that the target has for it.
    pub(super) stage: Vec<(String, String)>,
    /// The key's columns, each with the operator that tells whether two are equal.
    pub(super) key: Vec<(String, String)>,
    /// The column that marks deleted rows.
    pub(super) deleted: Option<Deleted>,
    /// The remarks on what could not be as in the source.
    pub(super) remarks: Vec<String>,
    pub(super) is_empty: bool,
    truncates: bool,
    /// It was made now, and gets its primary key when the rows are there.
    lacks_key: bool,
}

/// A column that marks deleted rows.
pub(super) struct Deleted {
    /// Its name, as SQL.
    pub(super) column: String,
    /// The value of a deleted row, as SQL.
    pub(super) marked: &'static str,
    /// The value of another row, as SQL.
    pub(super) live: &'static str,
    /// The condition of a value that marks a deleted row, as SQL behind it.
    pub(super) is_marked: &'static str,
}

impl TargetTable {
    /// The table for an export, made or altered where it has to be.
    pub(super) async fn fit(
        conn: &mut PgConnection,
        table: &Table,
        manifest: &Manifest,
        before: Option<&TargetPosition>,
        settings: &Settings,
    ) -> Result<TargetTable, Error> {
        let export = &manifest.export;
        let name = relation(table);
        if export.key.is_empty() || export.columns.is_empty() {
            return Err(Error::refused(
                "no_key",
                format!("the export {} doesn't say its columns and its key", export.job),
            ));
        }
        let is_new = !exists(conn, table).await?;
        require_other(conn, table, export).await?;
        if let Some(before) = before
            && before.details.deleted != settings.deleted
        {
            let shown = |column: &Option<String>| column.clone().unwrap_or_else(|| "hard".to_owned());
            let why = format!(
                "{name} was kept with --deletes {} until now: keep it so, or remove the table and its row of cdc_apply.positions",
                shown(&before.details.deleted)
            );
            return Err(Error::refused("deletes", why));
        }
        let mut remarks = Vec::new();
        if is_new {
            if before.is_some() {
                let why =
                    format!("{name} is gone: remove its row of cdc_apply.positions, and a full export makes it anew");
                return Err(Error::refused("target_changed", why));
            }
            alter::make(conn, table, export, &mut remarks).await?;
        } else {
            alter::follow(conn, &name, export, before, settings, &mut remarks).await?;
        }
        let deleted = match &settings.deleted {
            Some(column) => Some(Deleted::find(conn, &name, column, export).await?),
            None => None,
        };
        let present = columns(conn, &name).await?;
        let find = |name: &str| present.iter().find(|column| column.name == name);
        for key in export.columns.iter().filter(|column| export.key.contains(&column.name)) {
            if let Some(found) = find(&key.name) {
                require_as_fine(&name, key, found)?;
            }
        }
        let of_table: Vec<&ManifestColumn> = of_table(export).collect();
        let columns: Vec<String> = of_table.iter().map(|column| column.name.clone()).collect();
        let written: Vec<_> =
            columns.iter().filter(|name| find(name).is_some_and(|column| !column.is_generated)).collect();
        let is_fixed = |name: &str| find(name).is_some_and(|column| column.is_identity);
        if let Some(fixed) = written.iter().find(|column| is_fixed(column) && !export.key.contains(column)) {
            let why = format!(
                "the column {fixed} of {name} is an identity that nobody may update: `alter table {name} alter column {} set generated by default`",
                quoted(fixed)
            );
            return Err(Error::refused("identity", why));
        }
        let is_own = |column: &&ExistingColumn| {
            !columns.contains(&column.name) && !column.is_generated && settings.deleted.as_ref() != Some(&column.name)
        };
        let type_of = |column: &ManifestColumn| match find(&column.name) {
            Some(found) if !(is_delta(export) && column.name == OPERATION) => found.base_type.clone(),
            _ => "text".to_owned(),
        };
        let equal = |name: &String| find(name).map_or_else(|| EQUAL.to_owned(), |column| column.equal.clone());
        let shape = TargetTable {
            updated: written.iter().filter(|name| !is_fixed(name)).map(|name| (*name).clone()).collect(),
            written: written.into_iter().cloned().collect(),
            has_own: present.iter().any(|column| is_own(&column)),
            oid: oid(conn, &name).await?,
            numbers: numbers(&present, export),
            references_itself: references_itself(conn, &name).await?,
            stage: export.columns.iter().map(|column| (column.name.clone(), type_of(column))).collect(),
            key: export.key.iter().map(|name| (name.clone(), equal(name))).collect(),
            is_empty: is_new || is_empty(conn, &name).await?,
            truncates: settings.truncates,
            lacks_key: is_new,
            table: name,
            columns,
            deleted,
            remarks,
        };
        if !is_new {
            shape.require_key(conn, before).await?;
        } else if !shape.replaces_all(manifest) {
            shape.add_key(conn).await?;
        }
        if shape.replaces_all(manifest) && !shape.is_empty {
            run(conn, "table.truncate", &format!("truncate {}", shape.table)).await.doing("to empty the table")?;
        }
        Ok(shape)
    }

    /// Returns true if the export's rows are all that the table is to hold, and nothing there is to be kept or
    /// compared.
    pub(super) fn replaces_all(&self, manifest: &Manifest) -> bool {
        let is_emptied = self.is_empty || self.truncates && self.deleted.is_none();
        manifest.export.export_type == "full" && is_emptied && self.written.len() == self.columns.len()
    }

    /// Adds the key that a new table lacks, once the rows are there.
    pub(super) async fn finish(&self, conn: &mut PgConnection) -> Result<(), Error> {
        if self.lacks_key { self.add_key(conn).await } else { Ok(()) }
    }

    async fn add_key(&self, conn: &mut PgConnection) -> Result<(), Error> {
        let key: Vec<_> = self.key.iter().map(|(name, _)| quoted(name)).collect();
        let add = format!("alter table {} add primary key ({})", self.table, key.join(", "));
        run(conn, "table.add_key", &add).await.map(drop).doing("the primary key")
    }

    /// Refuses a table in which the export's key doesn't tell rows apart.
    async fn require_key(&self, conn: &mut PgConnection, before: Option<&TargetPosition>) -> Result<(), Error> {
        let key: Vec<&str> = self.key.iter().map(|(name, _)| name.as_str()).collect();
        let is_unique: bool = sqlx::query_scalar(
            "-- apply.table.is_unique
             select exists (
               select from pg_index i
               where i.indrelid = $1::regclass and i.indisunique and i.indisvalid and i.indimmediate
                 and i.indpred is null and i.indexprs is null
                 and (select array_agg(a.attname::text order by a.attname::text collate \"C\") from pg_attribute a
                      where a.attrelid = i.indrelid and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
                   = (select array_agg(k order by k collate \"C\") from unnest($2::text[]) k))",
        )
        .bind(&self.table)
        .bind(&key)
        .fetch_one(conn)
        .await
        .doing(DEED)?;
        if is_unique {
            return Ok(());
        }
        let had = before
            .map(|before| before.details.key.iter().map(String::as_str).collect::<Vec<_>>())
            .filter(|had| *had != key);
        let (code, was) = match had {
            Some(had) => ("key_changed", format!(" and was ({})", had.join(", "))),
            None => ("no_key", String::new()),
        };
        let why = format!(
            "the export's key is ({}){was}, and {} has no unique index of it: give it one, with no condition and not deferrable",
            key.join(", "),
            self.table
        );
        Err(Error::refused(code, why))
    }
}

impl Deleted {
    /// The column, made if it isn't there.
    async fn find(conn: &mut PgConnection, table: &str, column: &str, export: &Chained) -> Result<Deleted, Error> {
        if export.columns.iter().any(|exported| exported.name == column) {
            let why = format!("--deletes {column}: the source has a column of this name");
            return Err(Error::refused("deletes", why));
        }
        let found = columns(conn, table).await?.into_iter().find(|present| present.name == column);
        let type_name = match found {
            Some(found) => found.type_name,
            None => {
                alter::add(conn, table, column, "timestamp with time zone").await?;
                "timestamp with time zone".to_owned()
            }
        };
        let (marked, live, is_marked) = match type_name.as_str() {
            "boolean" => ("true", "false", "is true"),
            time if time.starts_with("timestamp") => ("pg_catalog.clock_timestamp()", "null", "is not null"),
            other => {
                let why = format!("--deletes {column}: it is a boolean or a timestamp, and here it is {other}");
                return Err(Error::refused("deletes", why));
            }
        };
        Ok(Deleted { column: quoted(column), marked, live, is_marked })
    }
}

/// Refuses a column of the key in which two different keys of the source could be equal: one row would replace the
/// other.
fn require_as_fine(table: &str, key: &ManifestColumn, found: &ExistingColumn) -> Result<(), Error> {
    let ManifestColumn { name, type_name } = key;
    let (is, becomes) = if found.folds_texts {
        (
            "compared by a collation that isn't deterministic".to_owned(),
            "give it and its unique indexes a deterministic one".to_owned(),
        )
    } else if !found.is_enum && !tells_apart(type_name, &found.base_type) {
        (found.type_name.clone(), format!("make it {type_name}"))
    } else {
        return Ok(());
    };
    let why = format!(
        "the key's column {name} is {type_name} in the source, and in {table} it is {is}, so that two different keys may be equal: \
         {becomes}"
    );
    Err(Error::refused("key_coarser", why))
}

/// Refuses the very table that the export is of.
async fn require_other(conn: &mut PgConnection, table: &Table, export: &Chained) -> Result<(), Error> {
    let here: (String, String) = sqlx::query_as(
        "-- apply.table.database
         select lpad(to_hex(s.system_identifier), 16, '0'), d.oid::text
         from pg_control_system() s, pg_database d where d.datname = current_database()",
    )
    .fetch_one(conn)
    .await
    .doing("to tell this database from the source")?;
    let is_source = (&here.0, &here.1) == (&export.source.cluster, &export.source.database);
    if is_source && export.table.as_deref().is_none_or(|name| name.parse().is_ok_and(|of: Table| of == *table)) {
        let why = format!("{table} here is the very table that the export is of: --table names another one");
        return Err(Error::refused("same_table", why));
    }
    Ok(())
}
