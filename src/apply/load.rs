//! Loads the rows of an export's files into the target by `COPY`.

use std::io::Read;

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
    let checked: Vec<_> = target_table.checked().collect();
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
    for (name, type_name) in checked {
        require_same_texts(conn, &staged, name, type_name).await?;
    }
    if rows >= ANALYZED_FROM {
        let analyze = format!("analyze {staged}");
        run(conn, "load.analyze", &analyze).await.during("to analyze a temporary table")?;
    }
    Ok(rows)
}

/// Gives a column of the stage, which has the texts of the files, its own type.
///
/// # Errors
/// If the target doesn't write a value as it is in the files: it reads another value there.
async fn require_same_texts(conn: &mut PgConnection, stage: &str, name: &str, type_name: &str) -> Result<(), Error> {
    let column = quoted(name);
    let by_text = format!("{column}::{type_name}::text <> {column}");
    let differs = match type_name {
        // The column may be a number at the source.
        "money" => format!(
            "case when {column} ~ '^-?[0-9.]+$' then {column}::money::numeric <> {column}::numeric else {by_text} end"
        ),
        _ => by_text,
    };
    let differ = format!("-- apply.load.differ\n select exists (select from {stage} where {differs})");
    let differ = sqlx::query_scalar(AssertSqlSafe(differ)).fetch_one(&mut *conn).await;
    let is_data = |error: &sqlx::Error| sqlstate(error).starts_with("22");
    match differ {
        Ok(false) => {}
        Err(error) if !is_data(&error) => return Err(Error::during("to check the rows", error)),
        Ok(true) | Err(_) => {
            let why = format!(
                "the target reads other values from the texts of the column {name}, of the type {type_name}: make the column \
                 text, or for money set lc_monetary as it is at the source, or for \"char\" take Postgres 16 or later on both sides"
            );
            return Err(Error::refused("other_values", why));
        }
    }
    let typed = format!("alter table {stage} alter column {column} type {type_name} using {column}::{type_name}");
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
    const ACTION: &str = "the rows";
    let columns: Vec<_> = columns.iter().map(|name| quoted(name)).collect();
    let statement = format!("copy {table} ({}) from stdin (format csv, header)", columns.join(", "));
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
        let mut copy = conn.copy_in_raw(&statement).await.during(ACTION)?;
        while let Some(chunk) = arriving.recv().await {
            match chunk {
                Ok(chunk) if chunk.is_empty() => break,
                Ok(chunk) => drop(copy.send(chunk).await.during(ACTION)?),
                Err(error) => {
                    copy.abort("the file can't be read").await.during(ACTION)?;
                    return Err(Error::Input(error));
                }
            }
        }
        rows += copy.finish().await.during(ACTION)?;
    }
    Ok(rows)
}
