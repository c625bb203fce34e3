//! The rows of an export, brought from the stage into the table.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::apply::table::{OPERATION, STAGE, Shape};
use crate::apply::{Changes, Doing, Error};
use crate::connection::failure::SqlFailure;
use crate::connection::quoted;
use crate::manifest::Manifest;

const ROWS: &str = "the rows";

/// The statements that bring an export into the table.
pub(super) struct Merge<'s> {
    shape: &'s Shape,
    /// Takes away what is deleted.
    delete: Option<String>,
    /// Writes what is there.
    upsert: String,
    /// Takes away every row that the export tells of.
    clear: String,
    /// Writes what is there, into a table that has none of it.
    insert: String,
}

impl<'s> Merge<'s> {
    pub(super) fn new(shape: &'s Shape, manifest: &Manifest) -> Merge<'s> {
        let Shape { table, deleted, .. } = shape;
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
                "update {table} t set {} = {} where t.{} is not distinct from {} and {gone}",
                deleted.column, deleted.marked, deleted.column, deleted.live
            ),
        });
        let written: Vec<_> = shape.written.iter().map(|name| quoted(name)).collect();
        let of = |alias: &str| written.iter().map(|name| format!("{alias}.{name}")).collect::<Vec<_>>().join(", ");
        // An identity column takes the source's values, too.
        let insert = format!(
            "insert into {table} as t ({}) overriding system value select {} from {stage} s{of_stage}",
            written.join(", "),
            of("s")
        );
        let key: Vec<_> = shape.key.iter().map(|(name, _)| quoted(name)).collect();
        let mut set: Vec<_> =
            written.iter().filter(|name| !key.contains(name)).map(|name| format!("{name} = excluded.{name}")).collect();
        // Of types that have no equality, such as json, too.
        let mut differs = format!("row({})::record operator(pg_catalog.*<>) row({})::record", of("t"), of("excluded"));
        if let Some(deleted) = deleted {
            set.push(format!("{} = {}", deleted.column, deleted.live));
            differs += &format!(" or t.{} is distinct from {}", deleted.column, deleted.live);
        }
        let conflict = match set.as_slice() {
            [] => "nothing".to_owned(),
            set => format!("update set {} where {differs}", set.join(", ")),
        };
        Merge {
            shape,
            delete,
            upsert: format!("{insert} on conflict ({}) do {conflict}", key.join(", ")),
            clear: format!("delete from {table} t where exists (select from {stage} s where {same_key})"),
            insert,
        }
    }

    /// Runs them.
    pub(super) async fn run(&self, conn: &mut PgConnection) -> Result<Changes, Error> {
        let mut changes = Changes::default();
        if let Some(delete) = &self.delete {
            changes.deleted = run(conn, "delete", delete).await.doing("to delete rows")?;
        }
        savepoint(conn, "savepoint").await?;
        changes.written = match run(conn, "upsert", &self.upsert).await {
            Err(error) if SqlFailure::of(&error) == SqlFailure::Duplicate => {
                savepoint(conn, "rollback to").await?;
                self.require_unreferenced(conn, &error).await?;
                // Rows have exchanged values of which each is unique, so that none can come first.
                run(conn, "clear", &self.clear).await.doing(ROWS)?;
                run(conn, "insert", &self.insert).await
            }
            written => written,
        }
        .doing(ROWS)?;
        Ok(changes)
    }

    /// Refuses to delete rows for a moment that others reference: these might go with them.
    async fn require_unreferenced(&self, conn: &mut PgConnection, cause: &sqlx::Error) -> Result<(), Error> {
        let is_referenced: bool = sqlx::query_scalar(
            "-- apply.merge.is_referenced
             select exists (select from pg_constraint where contype = 'f' and confrelid = $1::regclass)",
        )
        .bind(&self.shape.table)
        .fetch_one(conn)
        .await
        .doing(ROWS)?;
        if !is_referenced {
            return Ok(());
        }
        let why = format!(
            "rows of {} have exchanged unique values ({cause}), and other tables reference it: make the unique constraint deferrable",
            self.shape.table
        );
        Err(Error::refused("unique_values", why))
    }
}

async fn run(conn: &mut PgConnection, name: &str, statement: &str) -> Result<u64, sqlx::Error> {
    let statement = format!("-- apply.merge.{name}\n {statement}");
    Ok(sqlx::raw_sql(AssertSqlSafe(statement)).execute(conn).await?.rows_affected())
}

async fn savepoint(conn: &mut PgConnection, verb: &str) -> Result<(), Error> {
    run(conn, "savepoint", &format!("{verb} cdc_apply_merge")).await.map(drop).doing(ROWS)
}
