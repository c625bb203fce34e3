//! Prepares the target's table for an export: creates the table, or checks the existing one, and follows changes of the
//! source's columns.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;

use crate::apply::catalog::{
    EQUAL, ExistingColumn, INSPECT_TABLE, columns, exists, is_empty, numbers, oid, operation, relation, target_columns,
};
use crate::apply::key_type::keeps_distinct;
use crate::apply::statement::run;
use crate::apply::{During, Error, Settings, TargetPosition, alter, trust};
use crate::connection::quoted;
use crate::dataset::Table;
use crate::manifest::{Chained, Manifest, ManifestColumn};

/// The state of a table when an export is applied to it.
pub(super) struct TargetTable {
    /// Its name, as SQL.
    pub(super) table: String,
    /// The export's columns that are columns of the table, in their order.
    pub(super) columns: Vec<String>,
    /// The column of a delta's stage that has the operation on the row, as SQL.
    pub(super) operation: Option<String>,
    /// The columns of `columns` that are written: all except generated columns.
    pub(super) written: Vec<String>,
    /// The columns of `written` that are updated: all except identity columns of the key.
    pub(super) updated: Vec<String>,
    /// True if the table has columns that the export lacks.
    pub(super) has_extra_columns: bool,
    /// The oid of the table.
    pub(super) oid: i64,
    /// The attribute numbers of the export's columns, by column name.
    pub(super) numbers: BTreeMap<String, i16>,
    /// The columns of the stage: those of the export, each with its type in the target.
    pub(super) stage: Vec<(String, String)>,
    /// The columns of the target whose texts another server may write differently.
    server_texts: Vec<String>,
    /// The key's columns, each with the operator that compares two values for equality.
    pub(super) key: Vec<(String, String)>,
    /// The column that marks deleted rows.
    pub(super) deleted: Option<DeletionMarker>,
    /// The remarks on differences between the table and the source.
    pub(super) remarks: Vec<String>,
    pub(super) is_empty: bool,
    /// True if a full export empties the table first.
    pub(super) truncates: bool,
    /// True if the table gets its primary key after the rows are loaded.
    lacks_key: bool,
    /// True if rows can't be merged: the export has no key, or the table had none until now.
    pub(super) is_replaced: bool,
}

/// A column that marks deleted rows.
pub(super) struct DeletionMarker {
    /// Its name, as SQL.
    pub(super) column: String,
    /// The value of a deleted row, as SQL.
    pub(super) marked: &'static str,
    /// The value of another row, as SQL.
    pub(super) live: &'static str,
    /// The condition that a value marks a deleted row, as SQL that follows the column.
    pub(super) is_marked: &'static str,
}

impl TargetTable {
    /// Creates or alters the table so that the export can be applied.
    pub(super) async fn prepare(
        conn: &mut PgConnection,
        table: &Table,
        manifest: &Manifest,
        before: Option<&TargetPosition>,
        settings: &Settings,
    ) -> Result<TargetTable, Error> {
        let export = &manifest.export;
        let name = relation(table);
        let has_key = !export.key.is_empty();
        if export.columns.is_empty() || !has_key && export.export_type != "full" {
            return Err(Error::refused(
                "no_key",
                format!("the manifest of the export {} lists no columns or no key", export.job),
            ));
        }
        if let Some(column) = settings.deleted.as_ref().filter(|_| !has_key) {
            let why = format!("--deletes {column}: without a key, nobody can tell which rows of {name} are deleted");
            return Err(Error::refused("deletes", why));
        }
        refuse_source_table(conn, table, export).await?;
        trust::require_owners(conn, table, &settings.trusted_owners).await?;
        let is_new = !exists(conn, table).await?;
        if let Some(before) = before
            && before.details.deleted != settings.deleted
        {
            let shown = |column: &Option<String>| column.clone().unwrap_or_else(|| "hard".to_owned());
            let why = format!(
                "{name} was created with --deletes {}: use that again, or remove the table and its row of cdc_apply.positions",
                shown(&before.details.deleted)
            );
            return Err(Error::refused("deletes", why));
        }
        let mut remarks = Vec::new();
        if is_new {
            if before.is_some() {
                let why = format!(
                    "{name} was dropped: remove its row of cdc_apply.positions, and a full export creates it again"
                );
                return Err(Error::refused("target_changed", why));
            }
            alter::create_table(conn, table, export, settings, &mut remarks).await?;
            trust::require_owners(conn, table, &settings.trusted_owners).await?;
        } else {
            // While rows may be lost, nobody may insert any: the table has to be empty until the end.
            let mode = if before.is_some() { "row exclusive" } else { "share row exclusive" };
            run(conn, "table.lock", &format!("lock table {name} in {mode} mode")).await.during("to lock the table")?;
            trust::require_owners(conn, table, &settings.trusted_owners).await?;
        }
        let is_empty = is_new || is_empty(conn, &name).await?;
        // Without `--table` it is the source that names the table, and so chooses the rows to replace.
        if before.is_none() && settings.table.is_none() && !is_empty {
            let why = format!(
                "{table} has rows that no export of this consumer and dataset has brought: if they shall be replaced, give --table {table}"
            );
            return Err(Error::refused("has_rows", why));
        }
        if !is_new {
            if let Some(before) = before {
                refuse_former_key(conn, &name, export, &before.details.key).await?;
            }
            alter::follow_source_columns(conn, &name, export, before, settings, &mut remarks).await?;
        }
        let deleted = match &settings.deleted {
            Some(column) => Some(DeletionMarker::prepare(conn, &name, column, export).await?),
            None => None,
        };
        let present = columns(conn, &name).await?;
        let find = |name: &str| present.iter().find(|column| column.name == name);
        for key in export.columns.iter().filter(|column| export.key.contains(&column.name)) {
            if let Some(found) = find(&key.name) {
                require_distinct_keys(&name, key, found)?;
            }
        }
        let target_columns: Vec<&ManifestColumn> = target_columns(export, settings).collect();
        let columns: Vec<String> = target_columns.iter().map(|column| column.name.clone()).collect();
        let written: Vec<_> =
            columns.iter().filter(|name| find(name).is_some_and(|column| !column.is_generated)).collect();
        let is_fixed = |name: &str| find(name).is_some_and(|column| column.is_identity);
        if let Some(fixed) = written.iter().find(|column| is_fixed(column) && !export.key.contains(column)) {
            let why = format!(
                "the column {fixed} of {name} is `generated always` and can't be updated: `alter table {name} alter column {} set generated by default`",
                quoted(fixed)
            );
            return Err(Error::refused("identity", why));
        }
        let is_extra = |column: &&ExistingColumn| {
            !columns.contains(&column.name) && !column.is_generated && settings.deleted.as_ref() != Some(&column.name)
        };
        let type_of = |column: &ManifestColumn| match find(&column.name) {
            Some(found) if columns.contains(&column.name) => found.base_type.clone(),
            _ => "text".to_owned(),
        };
        // Postgres compares no values of a domain over an enum.
        let equal = |name: &String| match find(name) {
            Some(column) if column.is_enum => format!("::{} {}", column.base_type, column.equal),
            Some(column) => column.equal.clone(),
            None => EQUAL.to_owned(),
        };
        let mut target_table = TargetTable {
            updated: written.iter().filter(|name| !is_fixed(name)).map(|name| (*name).clone()).collect(),
            written: written.into_iter().cloned().collect(),
            has_extra_columns: present.iter().any(|column| is_extra(&column)),
            oid: oid(conn, &name).await?,
            numbers: numbers(&present, export, settings),
            server_texts: present.iter().filter(|it| it.depends_on_server).map(|it| it.name.clone()).collect(),
            stage: export.columns.iter().map(|column| (column.name.clone(), type_of(column))).collect(),
            key: export.key.iter().map(|name| (name.clone(), equal(name))).collect(),
            is_empty,
            truncates: settings.truncates,
            lacks_key: is_new && has_key,
            is_replaced: !has_key,
            table: name,
            operation: operation(export).map(|column| quoted(&column.name)),
            columns,
            deleted,
            remarks,
        };
        if has_key && !is_new {
            let gained = before.is_some_and(|before| before.details.key.is_empty()) && export.export_type == "full";
            match target_table.require_key(conn, before).await {
                Err(Error::Refused { .. }) if gained => {
                    (target_table.lacks_key, target_table.is_replaced) = (true, true)
                }
                required => required?,
            }
        } else if !target_table.replaces_all(manifest) {
            target_table.add_missing_key(conn).await?;
        }
        Ok(target_table)
    }

    /// Returns the name of the temporary table that the export's rows are loaded into first.
    pub(super) fn stage_name(&self) -> String {
        format!("cdc_apply_stage_{}", self.oid)
    }

    /// Returns that table as SQL.
    pub(super) fn stage_table(&self) -> String {
        format!("pg_temp.{}", self.stage_name())
    }

    /// Returns true if the export's rows replace all rows of the table, so that no row must be kept or compared.
    pub(super) fn replaces_all(&self, manifest: &Manifest) -> bool {
        self.is_replaced || self.may_truncate(manifest)
    }

    /// Returns true if the table may be emptied by `truncate` before the export's rows are loaded.
    pub(super) fn may_truncate(&self, manifest: &Manifest) -> bool {
        let is_emptied = self.is_empty || self.truncates && self.deleted.is_none();
        manifest.export.export_type == "full" && is_emptied && self.written.len() == self.columns.len()
    }

    /// Returns true if the rows must go through the stage: the files have columns that the table lacks, or texts that
    /// must be checked.
    pub(super) fn needs_stage(&self) -> bool {
        self.columns.len() < self.stage.len() || self.columns_to_check().next().is_some()
    }

    /// Returns the columns of the stage, each with its type, whose values another server may write differently.
    pub(super) fn columns_to_check(&self) -> impl Iterator<Item = &(String, String)> {
        let is_used = |name: &String| self.written.contains(name) || self.key.iter().any(|(key, _)| key == name);
        self.stage.iter().filter(move |(name, _)| is_used(name) && self.server_texts.contains(name))
    }

    /// Deletes all rows of a table whose rows can't be merged, if no `truncate` has. Returns the number of rows.
    pub(super) async fn delete_all(&self, conn: &mut PgConnection) -> Result<u64, Error> {
        if !self.is_replaced || self.truncates {
            return Ok(0);
        }
        run(conn, "table.delete_all", &format!("delete from {}", self.table)).await.during("to delete the rows")
    }

    /// Adds the primary key that a new table lacks, after the rows are loaded.
    pub(super) async fn add_missing_key(&self, conn: &mut PgConnection) -> Result<(), Error> {
        if self.lacks_key { self.add_key(conn).await } else { Ok(()) }
    }

    async fn add_key(&self, conn: &mut PgConnection) -> Result<(), Error> {
        let key: Vec<_> = self.key.iter().map(|(name, _)| quoted(name)).collect();
        let add = format!("alter table {} add primary key ({})", self.table, key.join(", "));
        run(conn, "table.add_key", &add).await.map(drop).during("the primary key")
    }

    /// Returns an error if the table has no unique index of the export's key.
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
        .during(INSPECT_TABLE)?;
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
            "the export's key is ({}){was}, and {} has no unique index on it: create one that is neither partial nor deferrable",
            key.join(", "),
            self.table
        );
        Err(Error::refused(code, why))
    }
}

impl DeletionMarker {
    /// Reads the column that marks deleted rows. Creates it if it is missing.
    async fn prepare(
        conn: &mut PgConnection,
        table: &str,
        column: &str,
        export: &Chained,
    ) -> Result<DeletionMarker, Error> {
        if export.columns.iter().any(|exported| exported.name == column) {
            let why = format!("--deletes {column}: the source has a column of this name");
            return Err(Error::refused("deletes", why));
        }
        let found = columns(conn, table).await?.into_iter().find(|present| present.name == column);
        let type_name = match found {
            Some(found) => found.type_name,
            None => {
                alter::add_column(conn, table, column, "timestamp with time zone").await?;
                "timestamp with time zone".to_owned()
            }
        };
        let (marked, live, is_marked) = match type_name.as_str() {
            "boolean" => ("true", "false", "is true"),
            time if time.starts_with("timestamp") => ("pg_catalog.clock_timestamp()", "null", "is not null"),
            other => {
                let why =
                    format!("--deletes {column}: a boolean or a timestamp is expected, and the column is {other}");
                return Err(Error::refused("deletes", why));
            }
        };
        Ok(DeletionMarker { column: quoted(column), marked, live, is_marked })
    }
}

/// Returns an error if the table still enforces the key that earlier exports had, which the source has no more.
async fn refuse_former_key(
    conn: &mut PgConnection,
    table: &str,
    export: &Chained,
    had: &[String],
) -> Result<(), Error> {
    let sorted = |key: &[String]| key.iter().cloned().collect::<BTreeSet<_>>();
    if had.is_empty() || sorted(had) == sorted(&export.key) {
        return Ok(());
    }
    let columns: Vec<_> = export.columns.iter().map(|column| column.name.as_str()).collect();
    let statements: Vec<String> = sqlx::query_scalar(include_str!("table/former_key.sql"))
        .bind(table)
        .bind(had)
        .bind(&export.key)
        .bind(columns)
        .fetch_all(conn)
        .await
        .during(INSPECT_TABLE)?;
    if statements.is_empty() {
        return Ok(());
    }
    let (now, needed) = match export.key.join(", ") {
        key if key.is_empty() => ("the export has no key".to_owned(), ""),
        key => (format!("the export's key is ({key})"), ", and give it a unique index on its new key"),
    };
    let why = format!(
        "{now} and was ({}), which {table} still enforces, and rows would be refused: run `{}`{needed}",
        had.join(", "),
        statements.join("; ")
    );
    Err(Error::refused("key_changed", why))
}

/// Returns an error if two different keys of the source could be equal in this column: one row would replace the other.
fn require_distinct_keys(table: &str, key: &ManifestColumn, found: &ExistingColumn) -> Result<(), Error> {
    let ManifestColumn { name, type_name, base, .. } = key;
    let with_base = |type_name: &str, base: &str| match type_name == base {
        true => type_name.to_owned(),
        false => format!("{type_name} (a domain over {base})"),
    };
    let base = base.as_ref().unwrap_or(type_name);
    let (is, becomes) = if found.folds_texts {
        (
            "compared by a nondeterministic collation".to_owned(),
            "give it and its unique indexes a deterministic collation".to_owned(),
        )
    } else if !found.is_enum && !keeps_distinct(base, &found.base_type) {
        (with_base(&found.type_name, &found.base_type), format!("make it {base}"))
    } else {
        return Ok(());
    };
    let why = format!(
        "the key's column {name} is {} in the source, and in {table} it is {is}, so that two different keys may be equal: \
         {becomes}",
        with_base(type_name, base)
    );
    Err(Error::refused("key_coarser", why))
}

/// Returns an error if the target is the source table itself.
async fn refuse_source_table(conn: &mut PgConnection, table: &Table, export: &Chained) -> Result<(), Error> {
    let here: (String, String) = sqlx::query_as(
        "-- apply.table.database
         select lpad(to_hex(s.system_identifier), 16, '0'), d.oid::text
         from pg_control_system() s, pg_database d where d.datname = current_database()",
    )
    .fetch_one(conn)
    .await
    .during("to read the identity of this database")?;
    let is_source = (&here.0, &here.1) == (&export.source.cluster, &export.source.database);
    if is_source && export.table.as_deref().is_none_or(|name| name.parse().is_ok_and(|of: Table| of == *table)) {
        let why = format!("{table} is the source table of the export itself: use --table to name another one");
        return Err(Error::refused("same_table", why));
    }
    Ok(())
}
