//! Loads the rows of an export's files into the target by `COPY`.

use std::io::Read;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::apply::input::Input;
use crate::apply::statement::run;
use crate::apply::table::TargetTable;
use crate::apply::{During, Error};
use cdc_manifest::Chained;
use pg_session::failure::with_timeout;
use pg_session::quoted;

const CHUNK_BYTES: usize = 256 << 10;
/// The longest time in which the target takes a chunk.
const COPY_TIMEOUT: Duration = Duration::from_secs(300);
/// The minimum number of rows with which the stage is analyzed. With fewer rows, plans are good enough without
/// statistics.
const ANALYZED_FROM: u64 = 1000;

/// Loads all rows into a temporary table that is dropped at the end of the transaction. Returns the number of rows.
///
/// No column is NOT NULL, because a deleted row may contain only its key.
pub(super) async fn into_stage(
    conn: &mut PgConnection,
    target_table: &TargetTable,
    export: &Chained,
    columns: &[String],
    files: Vec<Input>,
) -> Result<u64, Error> {
    let staged_columns: Vec<String> = export.columns.iter().map(|column| column.name.clone()).collect();
    let definition = |name: &String| {
        let found = target_table.columns.get(name).filter(|_| columns.contains(name));
        format!("{} {}", quoted(name), found.map_or("text", |column| &column.type_name))
    };
    let definitions: Vec<_> = staged_columns.iter().map(definition).collect();
    let (name, stage) = (target_table.stage_name(), target_table.stage_table());
    let made = format!("create temporary table {name} ({}) on commit drop", definitions.join(", "));
    run(conn, "load.stage", &made).await.during("a temporary table")?;
    let rows = copy(conn, &stage, &staged_columns, files).await?;
    if rows >= ANALYZED_FROM {
        run(conn, "load.analyze", &format!("analyze {stage}")).await.during("to analyze a temporary table")?;
    }
    Ok(rows)
}

/// Copies all rows of the stage into the table. Returns the number of rows.
pub(super) async fn from_stage(
    conn: &mut PgConnection,
    target_table: &TargetTable,
    columns: &[String],
) -> Result<u64, Error> {
    let columns = columns.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
    let (table, stage) = (&target_table.name, target_table.stage_table());
    let copy = format!("insert into {table} ({columns}) select {columns} from {stage}");
    run(conn, "load.from_stage", &copy).await.during("the rows")
}

/// Loads all rows into a table. `columns` are the columns of the files, in their order. Returns the number of rows.
pub(super) async fn copy(
    conn: &mut PgConnection,
    table: &str,
    columns: &[String],
    files: Vec<Input>,
) -> Result<u64, Error> {
    let refused = |cause| Error::during("the rows", cause);
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
                Ok(chunk) => copied(async { copy.send(chunk).await.map(drop).map_err(refused) }).await?,
                Err(error) => {
                    copy.abort("the file can't be read").await.map_err(refused)?;
                    return Err(Error::Input(error));
                }
            }
        }
        rows += copied(async { copy.finish().await.map_err(refused) }).await?;
    }
    Ok(rows)
}

/// Waits until the target takes rows. A look at the session can't tell whose turn it is during a `COPY`.
async fn copied<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    with_timeout(failpoint::time("apply.copy", COPY_TIMEOUT), call, Error::Unavailable).await
}
