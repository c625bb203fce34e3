//! What may be exported: a table's name and the columns of its files.
//!
//! Knows no SQL; `source` quotes the names, `encode` picks a formatter by kind.

use std::borrow::Cow;

use crate::job::ExportType;

/// How a column's values travel and are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric`, of any precision and scale
    Numeric,
    /// `boolean`
    Bool,
    /// `text`, `varchar`, and every type that Postgres is asked to make a text of
    Text,
    /// `uuid`
    Uuid,
    /// `bytea`
    Bytea,
    /// `json`: its text as it was written
    Json,
    /// `jsonb`: a text that Postgres makes of it
    Jsonb,
    /// `timestamp with time zone`
    Timestamptz,
    /// `timestamp without time zone`
    Timestamp,
    /// `date`
    Date,
    /// `time without time zone`
    Time,
}

/// A column of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name in the table and in the file's header.
    pub name: Cow<'static, str>,
    /// Its values.
    pub kind: Kind,
}

impl Column {
    /// A column of this name.
    pub const fn named(name: &'static str, kind: Kind) -> Column {
        Column { name: Cow::Borrowed(name), kind }
    }
}

/// How many bytes a value may have: a bound of memory, since a row is read and written whole.
#[derive(Clone, Copy, Debug)]
pub struct CellMax(pub u64);

/// A table that may be exported, and how its changes show.
#[derive(Clone, Copy, Debug)]
pub struct Dataset {
    /// Its name in requests and lists.
    pub name: &'static str,
    /// The table, found by the connection's `search_path`.
    pub table: &'static str,
    /// The column that tells rows apart.
    pub key: &'static str,
    /// The columns of a file, in order.
    pub columns: &'static [Column],
    /// The column that says when a row was made.
    pub created_at: &'static str,
    /// The column that says when a row was last changed.
    pub updated_at: &'static str,
    /// The column that says whether a row is deleted.
    pub deleted: &'static str,
}

impl Dataset {
    /// The columns of an export's file, in order: a delta has the operation first.
    pub fn file_columns(&self, export_type: ExportType) -> Vec<Column> {
        let operation = (export_type == ExportType::Delta).then_some(OPERATION);
        operation.into_iter().chain(self.columns.iter().cloned()).collect()
    }
}

/// The demo table, and any `users` of its shape.
pub const USERS: Dataset = Dataset {
    name: "users",
    table: "users",
    key: "id",
    columns: &[
        Column::named("id", Kind::Int8),
        Column::named("name", Kind::Text),
        Column::named("email", Kind::Text),
        Column::named("created_at", Kind::Timestamptz),
        Column::named("updated_at", Kind::Timestamptz),
        Column::named("is_deleted", Kind::Bool),
    ],
    created_at: "created_at",
    updated_at: "updated_at",
    deleted: "is_deleted",
};

/// The first column of a delta: `INSERT`, `UPDATE` or `DELETE`.
const OPERATION: Column = Column::named("operation", Kind::Text);
