//! Reads by `COPY … TO STDOUT (FORMAT BINARY)`: the fastest way out of Postgres, without parameters.

use bytes::{Buf, BytesMut};
use futures_util::TryStreamExt;
use sqlx::PgConnection;

use crate::job::Progress;
use crate::source::{Error, FRAME_BYTES, Frames, send};

/// Signature, flags and length of the header extension (PostgreSQL documentation, "COPY", "Binary Format").
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const HEADER_BYTES: usize = 19;
/// Where a row has its count of fields, the end has this.
const END: [u8; 2] = (-1i16).to_be_bytes();

/// Heap blocks of one COPY: 2 MiB, so that its start costs little and progress shows.
const RANGE_BLOCKS: u64 = 256;

/// What to read of a table.
pub(crate) struct Reading<'a> {
    /// A SELECT with a WHERE.
    pub(crate) select: String,
    /// The table's blocks, to be read in ranges; `None`: all at once.
    pub(crate) blocks: Option<u64>,
    pub(crate) table: &'static str,
    pub(crate) progress: &'a Progress,
}

/// Reads it all and sends it as frames.
pub(crate) async fn read(conn: &mut PgConnection, reading: &Reading<'_>, frames: &Frames) -> Result<(), Error> {
    let mut rows = BytesMut::with_capacity(FRAME_BYTES * 2);
    let select = &reading.select;
    match reading.blocks {
        None => read_one(conn, reading.table, select, &mut rows, frames).await?,
        Some(blocks) => {
            let mut from = 0;
            loop {
                let to = from + RANGE_BLOCKS;
                // The last range is open-ended: the table may have grown between its measure and the snapshot's readers.
                let last = to >= blocks;
                let below = if last { String::new() } else { format!(" and ctid < '({to},0)'") };
                let range = format!("{select} and ctid >= '({from},0)'{below}");
                read_one(conn, reading.table, &range, &mut rows, frames).await?;
                reading.progress.reach(to, blocks);
                if last {
                    break;
                }
                from = to;
            }
        }
    }
    send(frames, &mut rows).await
}

async fn read_one(
    conn: &mut PgConnection,
    table: &'static str,
    select: &str,
    rows: &mut BytesMut,
    frames: &Frames,
) -> Result<(), Error> {
    let failed = Error::of(table);
    let copy = format!("-- source.copy\n copy ({select}) to stdout (format binary)");
    let mut messages = conn.copy_out_raw(&copy).await.map_err(&failed)?;
    let mut begun = false;
    let mut ended = false;
    // Each message is one row ("Message Flow", "COPY Operations"); the first one begins with the header.
    while let Some(mut message) = messages.try_next().await.map_err(&failed)? {
        if !begun {
            if !message.starts_with(SIGNATURE) || message.len() < HEADER_BYTES {
                return Err(Error::Protocol("no header before a COPY's rows"));
            }
            message.advance(HEADER_BYTES);
            begun = true;
            if message.is_empty() {
                continue;
            }
        }
        if message.as_ref() == END {
            ended = true;
            continue;
        }
        rows.extend_from_slice(&message);
        if rows.len() >= FRAME_BYTES {
            send(frames, rows).await?;
        }
    }
    if ended { Ok(()) } else { Err(Error::Protocol("a COPY without its end")) }
}
