//! The rows of an export's files, brought into the target by `COPY`.

use std::io::Read;

use sqlx::PgConnection;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::apply::input::Input;
use crate::apply::statement::run;
use crate::apply::table::{STAGE, TargetTable};
use crate::apply::{Doing, Error};
use crate::connection::quoted;
use crate::manifest::Manifest;

/// The size of a chunk of a file, in bytes.
const CHUNK_BYTES: usize = 256 << 10;
/// A stage of fewer rows is planned for well enough without statistics.
const ANALYZED_FROM: u64 = 1000;

/// Brings all rows into a temporary table, which goes with the transaction. Nothing of it has to be set: of a deleted
/// row perhaps only the key is known. Returns how many.
pub(super) async fn into_stage(
    conn: &mut PgConnection,
    shape: &TargetTable,
    manifest: &Manifest,
    files: Vec<Input>,
) -> Result<u64, Error> {
    let columns = shape.stage.iter().map(|(name, type_name)| format!("{} {type_name}", quoted(name)));
    let columns = columns.collect::<Vec<_>>().join(", ");
    let made = format!("create temporary table {STAGE} ({columns}) on commit drop");
    run(conn, "load.stage", &made).await.doing("a temporary table")?;
    let columns: Vec<String> = manifest.export.columns.iter().map(|column| column.name.clone()).collect();
    let rows = copy(conn, &format!("pg_temp.{STAGE}"), &columns, files).await?;
    if rows >= ANALYZED_FROM {
        let analyze = format!("analyze pg_temp.{STAGE}");
        run(conn, "load.analyze", &analyze).await.doing("to analyze a temporary table")?;
    }
    Ok(rows)
}

/// Brings all rows into a table. `columns` are those of the files, in their order. Returns how many.
pub(super) async fn copy(
    conn: &mut PgConnection,
    table: &str,
    columns: &[String],
    files: Vec<Input>,
) -> Result<u64, Error> {
    const DEED: &str = "the rows";
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
                // Nobody waits for it any more: the target has failed.
                if chunks.blocking_send(read).is_err() || is_last {
                    return;
                }
            }
        });
        let mut copy = conn.copy_in_raw(&statement).await.doing(DEED)?;
        while let Some(chunk) = arriving.recv().await {
            match chunk {
                Ok(chunk) if chunk.is_empty() => break,
                Ok(chunk) => drop(copy.send(chunk).await.doing(DEED)?),
                Err(error) => {
                    copy.abort("the file can't be read").await.doing(DEED)?;
                    return Err(Error::Input(error));
                }
            }
        }
        rows += copy.finish().await.doing(DEED)?;
    }
    Ok(rows)
}
