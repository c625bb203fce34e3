//! Reads through a server-side cursor: takes parameters, and its memory is one batch on either side.

use bytes::{BufMut, BytesMut};
use futures_util::TryStreamExt;
use sqlx::postgres::{PgArguments, PgRow, PgValueFormat};
use sqlx::{AssertSqlSafe, PgConnection, Row, ValueRef};

use crate::dataset::Table;
use crate::source::{Error, FRAME_BYTES, Frames, send};

/// Rows of one FETCH. They stream through; what costs is the round trip, in which the server does nothing.
const BATCH_ROWS: u64 = 50_000;

/// Reads one statement with its parameters and sends its rows as frames.
pub(crate) async fn read(
    conn: &mut PgConnection,
    table: &Table,
    select: &str,
    parameters: PgArguments,
    frames: &Frames,
) -> Result<(), Error> {
    let failed = Error::of(table);
    let declare = format!("-- source.cursor.declare\n declare export no scroll cursor for {select}");
    // Planned with the values bound here, so that the planner knows how much of the log lies behind the snapshot.
    let declare = sqlx::query_with(AssertSqlSafe(declare), parameters);
    declare.persistent(false).execute(&mut *conn).await.map_err(&failed)?;
    let mut out = BytesMut::with_capacity(FRAME_BYTES * 2);
    loop {
        let mut fetched = 0;
        // Not persistent: the client would remember the columns of this text, and another export's cursor has others.
        let fetch = format!("-- source.cursor.fetch\n fetch forward {BATCH_ROWS} from export");
        let mut rows = sqlx::query(AssertSqlSafe(fetch)).persistent(false).fetch(&mut *conn);
        while let Some(row) = rows.try_next().await.map_err(&failed)? {
            put(&row, &mut out).map_err(&failed)?;
            fetched += 1;
            if out.len() >= FRAME_BYTES {
                send(frames, &mut out).await?;
            }
        }
        if fetched < BATCH_ROWS {
            break;
        }
    }
    let close = sqlx::query("-- source.cursor.close\n close export").persistent(false);
    close.execute(&mut *conn).await.map_err(&failed)?;
    send(frames, &mut out).await
}

/// Appends a row in the layout that `row` describes.
fn put(row: &PgRow, out: &mut BytesMut) -> Result<(), sqlx::Error> {
    let too_large = |_| sqlx::Error::Protocol("a row beyond the protocol's limits".into());
    out.put_i16(i16::try_from(row.len()).map_err(too_large)?);
    for i in 0..row.len() {
        let value = row.try_get_raw(i)?;
        if value.is_null() {
            out.put_i32(-1);
            continue;
        }
        debug_assert_eq!(value.format(), PgValueFormat::Binary, "the extended protocol sends what was asked for");
        let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
        out.put_i32(i32::try_from(bytes.len()).map_err(too_large)?);
        out.put_slice(bytes);
    }
    Ok(())
}
