//! Loads the rows of an export's files into the target by `COPY`.

use std::io::Read;

use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::apply::input::Input;
use crate::apply::statement::run;
use crate::apply::table::TargetTable;
use crate::apply::{During, Error, trust};
use crate::connection::failure::sqlstate;
use crate::connection::quoted;
use crate::dataset::Table;
use crate::manifest::Manifest;

/// The size of a chunk of a file, in bytes.
const CHUNK_BYTES: usize = 256 << 10;
/// The minimum number of rows with which the stage is analyzed. With fewer rows, plans are good enough without
/// statistics.
const ANALYZED_FROM: u64 = 1000;

/// Loads all rows into a temporary table that is dropped at the end of the transaction. Returns the number of rows.
///
/// No column is NOT NULL, because a deleted row may contain only its key.
pub(super) async fn into_stage(
    conn: &mut PgConnection,
    target_table: &TargetTable,
    manifest: &Manifest,
    files: Vec<Input>,
    trusted: &[String],
) -> Result<u64, Error> {
    let checked: Vec<_> = target_table.columns_to_check().collect();
    let columns = target_table.stage.iter().map(|column| {
        let type_name = if checked.contains(&column) { "text" } else { &column.1 };
        format!("{} {type_name}", quoted(&column.0))
    });
    let columns = columns.collect::<Vec<_>>().join(", ");
    let name = target_table.stage_name();
    let made = format!("create temporary table {name} ({columns}) on commit drop");
    run(conn, "load.stage", &made).await.during("a temporary table")?;
    // The types were looked up by their names once more.
    let stage = Table { schema: Some("pg_temp".to_owned()), name };
    trust::require_owners(conn, &stage, trusted).await?;
    let columns: Vec<String> = manifest.export.columns.iter().map(|column| column.name.clone()).collect();
    let staged = target_table.stage_table();
    let rows = copy(conn, &staged, &columns, files).await?;
    require_same_texts(conn, &staged, &checked).await?;
    if rows >= ANALYZED_FROM {
        let analyze = format!("analyze {staged}");
        run(conn, "load.analyze", &analyze).await.during("to analyze a temporary table")?;
    }
    Ok(rows)
}

/// Converts these columns of the stage from text to their own types.
///
/// # Errors
/// If the target, having read a text, writes another one.
async fn require_same_texts(conn: &mut PgConnection, stage: &str, columns: &[&(String, String)]) -> Result<(), Error> {
    if columns.is_empty() {
        return Ok(());
    }
    let differs = |(name, type_name): &(String, String)| {
        let column = quoted(name);
        let by_text = format!("{column}::{type_name}::text <> {column}");
        let differs = match type_name.as_str() {
            // The column may be a number at the source.
            "money" => format!(
                "case when {column} ~ '^-?[0-9.]+$' then {column}::money::numeric <> {column}::numeric else {by_text} end"
            ),
            _ => by_text,
        };
        format!("coalesce(pg_catalog.bool_or({differs}), false)")
    };
    let differ: Vec<_> = columns.iter().map(|column| differs(column)).collect();
    let differ = format!("-- apply.load.differ\n select array[{}] from {stage}", differ.join(", "));
    let differ: Result<Vec<bool>, _> = sqlx::query_scalar(AssertSqlSafe(differ)).fetch_one(&mut *conn).await;
    let refused: Vec<&str> = match differ {
        Ok(differ) => {
            columns.iter().zip(differ).filter(|(_, differs)| *differs).map(|(column, _)| &*column.0).collect()
        }
        // The target can't read a text at all, and the error doesn't say of which column it is.
        Err(error) if sqlstate(&error).starts_with("22") => columns.iter().map(|column| &*column.0).collect(),
        Err(error) => return Err(Error::during("to read the rows", error)),
    };
    if !refused.is_empty() {
        let why = format!(
            "the target reads another value from a text of the column {}: make the column text, or for money set lc_monetary as it is \
             at the source, or for \"char\" take Postgres 15 or later on both sides",
            refused.join(" or ")
        );
        return Err(Error::refused("other_values", why));
    }
    let typed = |(name, type_name): &(String, String)| {
        let column = quoted(name);
        format!("alter {column} type {type_name} using {column}::{type_name}")
    };
    let typed: Vec<_> = columns.iter().map(|column| typed(column)).collect();
    let typed = format!("alter table {stage} {}", typed.join(", "));
    run(conn, "load.typed", &typed).await.map(drop).during("the rows")
}

/// Copies all rows of the stage into the table. Returns the number of rows.
pub(super) async fn from_stage(conn: &mut PgConnection, target_table: &TargetTable) -> Result<u64, Error> {
    let columns: Vec<_> = target_table.columns.iter().map(|name| quoted(name)).collect();
    let (table, columns, stage) = (&target_table.table, columns.join(", "), target_table.stage_table());
    let copy = format!("insert into {table} ({columns}) overriding system value select {columns} from {stage}");
    run(conn, "load.from_stage", &copy).await.during("the rows")
}

/// Loads all rows into a table. `columns` are the columns of the files, in their order. Returns the number of rows.
pub(super) async fn copy(
    conn: &mut PgConnection,
    table: &str,
    columns: &[String],
    files: Vec<Input>,
) -> Result<u64, Error> {
    let refused = |cause| refused_rows(cause, columns);
    let quoted: Vec<_> = columns.iter().map(|name| quoted(name)).collect();
    let statement = format!("copy {table} ({}) from stdin (format csv, header)", quoted.join(", "));
    let mut rows = 0;
    for mut file in files {
        let (chunks, mut arriving) = mpsc::channel(4);
        spawn_blocking(move || {
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let read = file.read(&mut chunk).map(|read| {
                    chunk.truncate(read);
                    chunk
                });
                let is_last = read.as_ref().is_ok_and(Vec::is_empty) || read.is_err();
                // The receiver is closed because the target has failed.
                if chunks.blocking_send(read).is_err() || is_last {
                    return;
                }
            }
        });
        let mut copy = conn.copy_in_raw(&statement).await.map_err(refused)?;
        while let Some(chunk) = arriving.recv().await {
            match chunk {
                Ok(chunk) if chunk.is_empty() => break,
                Ok(chunk) => drop(copy.send(chunk).await.map_err(refused)?),
                Err(error) => {
                    copy.abort("the file can't be read").await.map_err(refused)?;
                    return Err(Error::Input(error));
                }
            }
        }
        rows += copy.finish().await.map_err(refused)?;
    }
    Ok(rows)
}

/// Returns the error of a COPY into these columns. Of a value that the target refuses it names the column alone, since
/// Postgres's message may quote the value.
fn refused_rows(cause: sqlx::Error, columns: &[String]) -> Error {
    let reported = cause.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    let context = reported.filter(|error| error.code().starts_with("22")).and_then(PgDatabaseError::r#where);
    let place = context.and_then(|context| Some(context.split_once(", column ")?.1));
    let is_named = |column: &&String| place.is_some_and(|place| place.starts_with(&format!("{column}: ")));
    match columns.iter().find(is_named) {
        Some(column) => {
            let code = sqlstate(&cause);
            let why = format!(
                "the column {column} of the target refuses a value of the export (SQLSTATE {code}): make it text, or give it the source's type"
            );
            Error::refused("value", why)
        }
        None => Error::during("the rows", cause),
    }
}
