//! Merges the rows of an export from the stage into the table.

use sqlx::PgConnection;

use crate::apply::references::DeletedEarly;
use crate::apply::statement::run;
use crate::apply::table::TargetTable;
use crate::apply::{During, Error};
use crate::connection::failure::SqlFailure;
use crate::connection::quoted;
use crate::manifest::Manifest;

const ROWS: &str = "the rows";
const DELETIONS: &str = "to delete rows";

/// The statements that merge an export into the table.
pub(super) struct Merge<'s> {
    target_table: &'s TargetTable,
    /// Deletes or marks the rows that the export deletes.
    delete: Option<String>,
    /// Inserts or updates the rows of the export.
    upsert: String,
    /// Deletes all rows that the export writes.
    clear: String,
    /// Inserts the rows of the export into a table that has none of them.
    insert: String,
}

impl<'s> Merge<'s> {
    pub(super) fn new(target_table: &'s TargetTable, manifest: &Manifest) -> Merge<'s> {
        let TargetTable { table, deleted, .. } = target_table;
        let stage = target_table.stage_table();
        let same_key: Vec<_> = target_table
            .key
            .iter()
            .map(|(name, equal)| {
                let name = quoted(name);
                format!("t.{name} {equal} s.{name}")
            })
            .collect();
        let same_key = same_key.join(" and ");
        // `gone` selects the rows of the table that the export deletes. `live_rows` selects the rows of the stage to
        // write.
        let (gone, live_rows) = match (manifest.export.export_type.as_str(), &target_table.operation) {
            ("full", _) => (Some(format!("not exists (select from {stage} s where {same_key})")), String::new()),
            (_, Some(operation)) => {
                let of = |sign: &str| format!("s.{operation} operator(pg_catalog.{sign}) 'DELETE'");
                // A key may get another text that is equal, such as 1.00 for 1.0. The old text is deleted, and the row
                // stays.
                let gone = format!(
                    "exists (select from {stage} s where {same_key} and {}) and not exists (select from {stage} s where {same_key} and {})",
                    of("="),
                    of("<>")
                );
                (Some(gone), format!(" where {}", of("<>")))
            }
            _ => (None, String::new()),
        };
        let delete = gone.map(|gone| match deleted {
            None => format!("delete from {table} t where {gone}"),
            Some(deleted) => format!(
                "update {table} t set {} = {} where (t.{} {}) is false and {gone}",
                deleted.column, deleted.marked, deleted.column, deleted.is_marked
            ),
        });
        let written: Vec<_> = target_table.written.iter().map(|name| quoted(name)).collect();
        let of = |alias: &str| written.iter().map(|name| format!("{alias}.{name}")).collect::<Vec<_>>().join(", ");
        // `overriding system value` also writes the source's values to identity columns.
        let (mark, live) = match deleted {
            Some(deleted) => (format!(", {}", deleted.column), format!(", {}", deleted.live)),
            None => Default::default(),
        };
        let insert = format!(
            "insert into {table} as t ({}{mark}) overriding system value select {}{live} from {stage} s{live_rows}",
            written.join(", "),
            of("s")
        );
        let key: Vec<_> = target_table.key.iter().map(|(name, _)| quoted(name)).collect();
        // Updates the columns of the key too, because equal values may have different texts, such as 1.0 and 1.00.
        let mut set: Vec<_> = target_table
            .updated
            .iter()
            .map(|name| quoted(name))
            .map(|name| format!("{name} = excluded.{name}"))
            .collect();
        // Compares records bytewise, because some types, such as json, have no equality operator.
        let mut differs = format!(
            "row({})::pg_catalog.record operator(pg_catalog.*<>) row({})::pg_catalog.record",
            of("t"),
            of("excluded")
        );
        if let Some(deleted) = deleted {
            set.push(format!("{} = {}", deleted.column, deleted.live));
            differs += &format!(" or t.{} {}", deleted.column, deleted.is_marked);
        }
        let conflict = match set.as_slice() {
            [] => "nothing".to_owned(),
            set => format!("update set {} where {differs}", set.join(", ")),
        };
        Merge {
            target_table,
            delete,
            upsert: format!("{insert} on conflict ({}) do {conflict}", key.join(", ")),
            clear: format!(
                "delete from {table} t where exists (select from {stage} s where {same_key}{})",
                live_rows.replace(" where ", " and ")
            ),
            insert,
        }
    }

    /// Returns true if rows are marked as deleted, and stay.
    pub(super) fn marks_deletions(&self) -> bool {
        self.target_table.deleted.is_some()
    }

    /// Deletes or marks rows before any row is written, so that written rows can have their unique values. Returns the
    /// number of rows.
    pub(super) async fn delete_early(&self, conn: &mut PgConnection, rows: DeletedEarly) -> Result<u64, Error> {
        match rows {
            DeletedEarly::All => self.delete(conn).await,
            DeletedEarly::None => Ok(0),
            DeletedEarly::Those(condition) => self.delete_those(conn, &format!(" and {condition}")).await,
            DeletedEarly::AllIfAllowed => {
                run(conn, "merge.delete_savepoint", "savepoint cdc_apply_delete").await.during(DELETIONS)?;
                match self.run_delete(conn, "").await {
                    Err(error) if SqlFailure::of(&error) == SqlFailure::Referenced => {
                        run(conn, "merge.keep", "rollback to cdc_apply_delete").await.during(DELETIONS)?;
                        Ok(0)
                    }
                    deleted => deleted.map_err(|cause| not_written(DELETIONS, cause)),
                }
            }
        }
    }

    /// Deletes or marks rows. Returns their number.
    pub(super) async fn delete(&self, conn: &mut PgConnection) -> Result<u64, Error> {
        self.delete_those(conn, "").await
    }

    async fn delete_those(&self, conn: &mut PgConnection, condition: &str) -> Result<u64, Error> {
        self.run_delete(conn, condition).await.map_err(|cause| not_written(DELETIONS, cause))
    }

    async fn run_delete(&self, conn: &mut PgConnection, condition: &str) -> Result<u64, sqlx::Error> {
        match &self.delete {
            Some(delete) => run(conn, "merge.delete", &format!("{delete}{condition}")).await,
            None => Ok(0),
        }
    }

    /// Inserts or updates rows. Returns their number.
    pub(super) async fn write(&self, conn: &mut PgConnection, is_referenced: bool) -> Result<u64, Error> {
        run(conn, "merge.savepoint", "savepoint cdc_apply_merge").await.during(ROWS)?;
        let written = match run(conn, "merge.upsert", &self.upsert).await {
            Err(error) if SqlFailure::of(&error) == SqlFailure::Duplicate => {
                run(conn, "merge.roll_back", "rollback to cdc_apply_merge").await.during(ROWS)?;
                self.require_unreferenced(is_referenced, &error)?;
                // Unique values have moved between rows, so the rows can't be updated one after the other.
                run(conn, "merge.clear", &self.clear).await.during(ROWS)?;
                run(conn, "merge.insert", &self.insert).await
            }
            written => written,
        }
        .map_err(|cause| not_written(ROWS, cause))?;
        // An open savepoint takes room in the table of locks.
        run(conn, "merge.release", "release cdc_apply_merge").await.during(ROWS)?;
        Ok(written)
    }

    /// Returns an error if rows can't be deleted and inserted again. Deleting them could cascade to other tables, or
    /// lose values of columns that the source lacks.
    fn require_unreferenced(&self, is_referenced: bool, cause: &sqlx::Error) -> Result<(), Error> {
        if !is_referenced && !self.target_table.has_extra_columns {
            return Ok(());
        }
        let what = if is_referenced { "other rows may reference it" } else { "it has columns of its own" };
        let why = format!(
            "unique values have moved between rows of {} ({}), and {what}: make a deferrable constraint of it",
            self.target_table.table,
            said(cause)
        );
        Err(Error::refused("unique_values", why))
    }
}

/// Returns the error of a statement that changes rows or checks constraints.
pub(super) fn not_written(action: &'static str, cause: sqlx::Error) -> Error {
    if SqlFailure::of(&cause) != SqlFailure::Referenced {
        return Error::during(action, cause);
    }
    Error::ForeignKey(said(&cause).to_owned())
}

/// Returns the message of Postgres alone.
fn said(cause: &sqlx::Error) -> &str {
    cause.as_database_error().map_or("", |reported| reported.message())
}
