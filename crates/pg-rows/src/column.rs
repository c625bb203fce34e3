//! The columns of a file: names, types in Postgres and in Parquet, and masks.

use std::borrow::Cow;
use std::sync::Arc;

use ring::hmac;

/// A column of a file.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name in the file's header.
    pub name: Cow<'static, str>,
    /// The type of its values in a row, or of the elements of its arrays.
    pub kind: ColumnType,
    /// True if its values are arrays, in their binary form. Only Parquet has them: as a `LIST`.
    pub is_list: bool,
    /// The type in Parquet of its values or elements.
    pub parquet: ParquetType,
    /// If true, a value or element that Parquet can't represent is written as NULL there; otherwise it is an error.
    pub null_if_unrepresentable: bool,
    /// The replacement of its values; `None`: they are written as they are.
    pub mask: Option<Mask>,
}

impl Column {
    /// A column with the Parquet type that is nearest to its kind.
    pub const fn new(name: &'static str, kind: ColumnType) -> Column {
        let name = Cow::Borrowed(name);
        let parquet = ParquetType::OfKind;
        Column { name, kind, is_list: false, parquet, null_if_unrepresentable: false, mask: None }
    }
}

crate::words! {
    /// The type of a column's values, which decides their binary form and their text. Its word is that of `pg_type`.
    ColumnType, "a type" {
        /// `smallint`
        Int2 = "int2",
        /// `integer`
        Int4 = "int4",
        /// `bigint`
        Int8 = "int8",
        /// `real`
        Float4 = "float4",
        /// `double precision`
        Float8 = "float8",
        /// `numeric`, of any precision and scale
        Numeric = "numeric",
        /// `boolean`
        Bool = "bool",
        /// `text`, `varchar`, and every type that the query casts to text
        Text = "text",
        /// `uuid`
        Uuid = "uuid",
        /// `bytea`
        Bytea = "bytea",
        /// `json`, the text as it was stored
        Json = "json",
        /// `jsonb`, as the text that Postgres makes of it
        Jsonb = "jsonb",
        /// `timestamp with time zone`
        Timestamptz = "timestamptz",
        /// `timestamp without time zone`
        Timestamp = "timestamp",
        /// `date`
        Date = "date",
        /// `time without time zone`
        Time = "time",
    }
}

/// The type of a column in Parquet, if there is a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParquetType {
    /// The type that is nearest to the column's kind.
    OfKind,
    /// A `DECIMAL`, for a `numeric` with all its digits.
    Decimal {
        /// The number of digits, at most 38.
        precision: u8,
        /// The number of digits behind the point, at most `precision`.
        scale: u8,
    },
    /// A `STRING` with the same text as in CSV.
    Text,
}

/// The replacement of a column's values. NULL stays NULL.
#[derive(Clone, Debug)]
pub enum Mask {
    /// NULL.
    Null,
    /// This text.
    Fixed(Arc<str>),
    /// Asterisks, and the last characters of the value's text: at most this many, and at most half of the text.
    Last(u8),
    /// The year of a date or a timestamp, as `extract` of Postgres has it. NULL for infinity.
    Year,
    /// The HMAC-SHA-256 of the value's text, in lowercase hexadecimal.
    Hmac(hmac::Key),
}

impl Mask {
    /// Returns the type of the values that are written.
    pub fn kind(&self) -> ColumnType {
        match self {
            Mask::Year => ColumnType::Int4,
            Mask::Null | Mask::Fixed(_) | Mask::Last(_) | Mask::Hmac(_) => ColumnType::Text,
        }
    }
}
