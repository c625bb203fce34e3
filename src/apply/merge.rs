//! The rows of an export, brought from the stage into the table.

use sqlx::PgConnection;

use crate::apply::catalog::OPERATION;
use crate::apply::statement::run;
use crate::apply::table::{STAGE, TargetTable};
use crate::apply::{Changes, Doing, Error};
use crate::connection::failure::SqlFailure;
use crate::connection::quoted;
use crate::manifest::Manifest;

const ROWS: &str = "the rows";

/// The statements that bring an export into the table.
pub(super) struct Merge<'s> {
    shape: &'s TargetTable,
    /// Takes away what is deleted.
    delete: Option<String>,
    /// Writes what is there.
    upsert: String,
    /// Takes away every row that the export writes.
    clear: String,
    /// Writes what is there, into a table that has none of it.
    insert: String,
}

impl<'s> Merge<'s> {
    pub(super) fn new(shape: &'s TargetTable, manifest: &Manifest) -> Merge<'s> {
        let TargetTable { table, deleted, .. } = shape;
        let stage = format!("pg_temp.{STAGE}");
        let same_key: Vec<_> = shape
            .key
            .iter()
            .map(|(name, equal)| {
                let name = quoted(name);
                format!("t.{name} {equal} s.{name}")
            })
            .collect();
        let same_key = same_key.join(" and ");
        // Which rows of the table the export says are gone; and which rows of the stage are there.
        let (gone, of_stage) = match manifest.export.export_type.as_str() {
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
        let written: Vec<_> = shape.written.iter().map(|name| quoted(name)).collect();
        let of = |alias: &str| written.iter().map(|name| format!("{alias}.{name}")).collect::<Vec<_>>().join(", ");
        // An identity column takes the source's values, too.
        let (mark, live) = match deleted {
            Some(deleted) => (format!(", {}", deleted.column), format!(", {}", deleted.live)),
            None => Default::default(),
        };
        let insert = format!(
            "insert into {table} as t ({}{mark}) overriding system value select {}{live} from {stage} s{of_stage}",
            written.join(", "),
            of("s")
        );
        let key: Vec<_> = shape.key.iter().map(|(name, _)| quoted(name)).collect();
        // The key's as well: values that are equal may be written in different ways, as 1.0 and 1.00.
        let mut set: Vec<_> =
            shape.updated.iter().map(|name| quoted(name)).map(|name| format!("{name} = excluded.{name}")).collect();
        // Of types that have no equality, such as json, too.
        let mut differs = format!("row({})::record operator(pg_catalog.*<>) row({})::record", of("t"), of("excluded"));
        if let Some(deleted) = deleted {
            set.push(format!("{} = {}", deleted.column, deleted.live));
            differs += &format!(" or t.{} {}", deleted.column, deleted.is_marked);
        }
        let conflict = match set.as_slice() {
            [] => "nothing".to_owned(),
            set => format!("update set {} where {differs}", set.join(", ")),
        };
        Merge {
            shape,
            delete,
            upsert: format!("{insert} on conflict ({}) do {conflict}", key.join(", ")),
            clear: format!(
                "delete from {table} t where exists (select from {stage} s where {same_key}{})",
                of_stage.replace(" where ", " and ")
            ),
            insert,
        }
    }

    /// Runs them.
    pub(super) async fn run(&self, conn: &mut PgConnection) -> Result<Changes, Error> {
        // Where rows reference others of the table, those that go are referenced no more once the others are written.
        if self.shape.references_itself {
            let written = self.write(conn).await?;
            return Ok(Changes { written, deleted: self.delete(conn).await? });
        }
        let deleted = self.delete(conn).await?;
        Ok(Changes { written: self.write(conn).await?, deleted })
    }

    async fn delete(&self, conn: &mut PgConnection) -> Result<u64, Error> {
        match &self.delete {
            Some(delete) => run(conn, "merge.delete", delete).await.doing("to delete rows"),
            None => Ok(0),
        }
    }

    async fn write(&self, conn: &mut PgConnection) -> Result<u64, Error> {
        run(conn, "merge.savepoint", "savepoint cdc_apply_merge").await.doing(ROWS)?;
        match run(conn, "merge.upsert", &self.upsert).await {
            Err(error) if SqlFailure::of(&error) == SqlFailure::Duplicate => {
                run(conn, "merge.roll_back", "rollback to cdc_apply_merge").await.doing(ROWS)?;
                self.require_unreferenced(conn, &error).await?;
                // Rows have exchanged values of which each is unique, so that none can come first.
                run(conn, "merge.clear", &self.clear).await.doing(ROWS)?;
                run(conn, "merge.insert", &self.insert).await
            }
            written => written,
        }
        .doing(ROWS)
    }

    /// Refuses to delete rows for a moment that others reference, which might go with them, or that have values of
    /// their own.
    async fn require_unreferenced(&self, conn: &mut PgConnection, cause: &sqlx::Error) -> Result<(), Error> {
        let is_referenced: bool = sqlx::query_scalar(
            "-- apply.merge.is_referenced
             select exists (select from pg_constraint where contype = 'f' and confrelid = $1::regclass)",
        )
        .bind(&self.shape.table)
        .fetch_one(conn)
        .await
        .doing(ROWS)?;
        if !is_referenced && !self.shape.has_own {
            return Ok(());
        }
        let what = if is_referenced { "other tables reference it" } else { "it has columns of its own" };
        let why = format!(
            "rows of {} have exchanged unique values ({cause}), and {what}: make the unique constraint deferrable",
            self.shape.table
        );
        Err(Error::refused("unique_values", why))
    }
}
