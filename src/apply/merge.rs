//! Merges the rows of an export from the stage into the table.

use sqlx::PgConnection;

use crate::apply::catalog::OPERATION;
use crate::apply::statement::run;
use crate::apply::table::{STAGE, TargetTable};
use crate::apply::{Changes, During, Error};
use crate::connection::failure::SqlFailure;
use crate::connection::quoted;
use crate::manifest::Manifest;

const ROWS: &str = "the rows";

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
        let stage = format!("pg_temp.{STAGE}");
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
        let (gone, live_rows) = match manifest.export.export_type.as_str() {
            "full" => (Some(format!("not exists (select from {stage} s where {same_key})")), String::new()),
            "delta" => {
                let of = |sign: &str| format!("s.{} operator(pg_catalog.{sign}) 'DELETE'", quoted(OPERATION));
                let gone = format!("exists (select from {stage} s where {same_key} and {})", of("="));
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

    /// Runs the statements. Returns the numbers of changed rows.
    pub(super) async fn run(&self, conn: &mut PgConnection) -> Result<Changes, Error> {
        // If rows reference other rows of the table, the new rows are written first, so that deleted rows aren't
        // referenced any more.
        if self.target_table.references_itself {
            let written = self.write(conn).await?;
            return Ok(Changes { written, deleted: self.delete(conn).await? });
        }
        let deleted = self.delete(conn).await?;
        Ok(Changes { written: self.write(conn).await?, deleted })
    }

    async fn delete(&self, conn: &mut PgConnection) -> Result<u64, Error> {
        match &self.delete {
            Some(delete) => run(conn, "merge.delete", delete).await.during("to delete rows"),
            None => Ok(0),
        }
    }

    async fn write(&self, conn: &mut PgConnection) -> Result<u64, Error> {
        run(conn, "merge.savepoint", "savepoint cdc_apply_merge").await.during(ROWS)?;
        match run(conn, "merge.upsert", &self.upsert).await {
            Err(error) if SqlFailure::of(&error) == SqlFailure::Duplicate => {
                run(conn, "merge.roll_back", "rollback to cdc_apply_merge").await.during(ROWS)?;
                self.require_unreferenced(conn, &error).await?;
                // Rows have exchanged unique values, so they can't be updated one after the other.
                run(conn, "merge.clear", &self.clear).await.during(ROWS)?;
                run(conn, "merge.insert", &self.insert).await
            }
            written => written,
        }
        .during(ROWS)
    }

    /// Returns an error if rows can't be deleted and inserted again. Deleting them could cascade to other tables, or
    /// lose values of columns that the source lacks.
    async fn require_unreferenced(&self, conn: &mut PgConnection, cause: &sqlx::Error) -> Result<(), Error> {
        let is_referenced: bool = sqlx::query_scalar(
            "-- apply.merge.is_referenced
             select exists (select from pg_constraint where contype = 'f' and confrelid = $1::regclass)",
        )
        .bind(&self.target_table.table)
        .fetch_one(conn)
        .await
        .during(ROWS)?;
        if !is_referenced && !self.target_table.has_extra_columns {
            return Ok(());
        }
        let what = if is_referenced { "other tables reference it" } else { "it has columns of its own" };
        let why = format!(
            "rows of {} have exchanged unique values ({cause}), and {what}: make the unique constraint deferrable",
            self.target_table.table
        );
        Err(Error::refused("unique_values", why))
    }
}
