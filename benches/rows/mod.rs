//! Rows of the demo's table `users`, as a binary COPY sends them.

use bytes::BufMut;
use pg_rows::Encoder;
use pg_rows::column::{Column, ColumnType};
use pg_rows::row::{BinaryRows, Fields};

/// The table's columns.
pub(crate) fn columns_of_users() -> Vec<Column> {
    [
        ("id", ColumnType::Int8),
        ("name", ColumnType::Text),
        ("email", ColumnType::Text),
        ("created_at", ColumnType::Timestamptz),
        ("updated_at", ColumnType::Timestamptz),
        ("is_deleted", ColumnType::Bool),
    ]
    .map(|(name, kind)| Column::new(name, kind))
    .into()
}

/// Appends the user of this number and name.
pub(crate) fn put_user(id: i64, name: &str, rows: &mut Vec<u8>) {
    let made = 825_000_000_000_000 + id * 2_592_000_017;
    let email = format!("user.{id}@example.com");
    let (id, made, changed) = (id.to_be_bytes(), made.to_be_bytes(), (made + 86_400_123_456).to_be_bytes());
    put_row(&[&id, name.as_bytes(), email.as_bytes(), &made, &changed, &[0]], rows);
}

/// Appends a row of these fields.
pub(crate) fn put_row(fields: &[&[u8]], rows: &mut Vec<u8>) {
    rows.put_i16(fields.len() as i16);
    for field in fields {
        rows.put_i32(field.len() as i32);
        rows.put_slice(field);
    }
}

/// Encodes a message's rows.
pub(crate) fn encode(encoder: &mut Encoder, room: &mut Fields, message: &[u8]) {
    let (mut rows, mut fields) = (BinaryRows::new(message), room.take());
    while rows.next_into(&mut fields).expect("the rows are whole") {
        encoder.row(&fields).expect("the rows are of these columns");
    }
    room.put_back(fields);
}
