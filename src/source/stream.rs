//! Reads a statement with parameters, row by row as the server sends them: who takes them slowly slows the server, and
//! nobody holds more than the receiver wants to.

use bytes::BufMut;
use futures_util::TryStreamExt;
use sqlx::postgres::{PgArguments, PgRow, PgValueFormat};
use sqlx::{AssertSqlSafe, PgConnection, Row, ValueRef};

use crate::dataset::Table;
use crate::row::RowReceiver;
use crate::source::Error;
use crate::source::session::Reader;

/// Reads one statement with its parameters and hands its rows over; what the receiver holds in the end is left with it.
/// The first row may take hours; `reader` tells the leader that it is waited for.
pub(crate) async fn read(
    conn: &mut PgConnection,
    reader: &Reader,
    table: &Table,
    select: &str,
    parameters: PgArguments,
    receiver: &mut impl RowReceiver,
) -> Result<(), Error> {
    let failed = Error::from_sql(table);
    let statement = AssertSqlSafe(format!("-- source.stream.read\n {select}"));
    // Not persistent: planned with these values, so that the planner knows how much of the log lies behind the
    // snapshot.
    let mut rows = sqlx::query_with(statement, parameters).persistent(false).fetch(conn);
    let mut bytes = Vec::new();
    reader.awaits_server();
    while let Some(row) = rows.try_next().await.map_err(&failed)? {
        reader.heard();
        bytes.clear();
        put(&row, &mut bytes).map_err(&failed)?;
        if receiver.receive(&bytes) {
            reader.rests();
            receiver.flush().await?;
            reader.awaits_server();
        }
    }
    reader.rests();
    Ok(())
}

/// Appends a row in the layout that `row` describes.
fn put(row: &PgRow, out: &mut Vec<u8>) -> Result<(), sqlx::Error> {
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
