//! The columns of a file.

use std::borrow::Cow;

/// A column of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name in the file's header.
    pub name: Cow<'static, str>,
    /// The type of its values.
    pub kind: ColumnType,
    /// Its type in Parquet.
    pub parquet: ParquetType,
    /// If true, a value that Parquet can't represent is written as NULL there; otherwise it is an error.
    pub null_if_unrepresentable: bool,
}

impl Column {
    /// A column with the Parquet type that is nearest to its kind.
    pub const fn new(name: &'static str, kind: ColumnType) -> Column {
        Column { name: Cow::Borrowed(name), kind, parquet: ParquetType::OfKind, null_if_unrepresentable: false }
    }
}

/// How a column's values travel and are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
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

/// What a column is in Parquet, where there is a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParquetType {
    /// What is nearest to its kind.
    OfKind,
    /// A `numeric` with all its digits, of which so many are behind the point: at most 38 of the first, and no more of the second.
    Decimal {
        /// How many digits there are.
        precision: u8,
        /// How many of them are behind the point.
        scale: u8,
    },
    /// A text of it.
    Text,
}
