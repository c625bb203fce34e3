//! A column of a table or a file.

use std::borrow::Cow;

use crate::mask::{MaskRule, MaskSecret};
use pg_rows::column::{ColumnType, ParquetType};
use pg_rows::meta::MetaColumn;

/// A column of a table or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableColumn {
    /// Its name in the table.
    pub name: Cow<'static, str>,
    /// Its name in files; `None`: the same.
    pub rename: Option<String>,
    /// Its number in the table, which stays when it is renamed; 0: it is in none.
    pub number: i16,
    pub kind: ColumnType,
    /// Its type as it was declared.
    pub type_name: Cow<'static, str>,
    /// The type beneath a domain, with its length or precision; `None`: the type is no domain.
    pub domain_base: Option<String>,
    /// The type to cast a value to, with its schema unless it is Postgres's own: a domain's base, and no length. Such a
    /// cast cuts nothing off, and a null violates no constraint of a domain.
    pub base_type: Cow<'static, str>,
    pub wire_format: WireFormat,
    /// The schema of the operators that compare its values.
    pub operators: Cow<'static, str>,
    pub parquet: ParquetType,
    /// The elements of its arrays, if Parquet has them as a `LIST`.
    pub list: Option<ListElement>,
    /// True if a value that Parquet can't represent is NULL there.
    pub null_if_unrepresentable: bool,
    /// The rule by which the files replace its values; `None`: they have them as they are.
    pub mask: Option<MaskRule>,
    /// The kind of a column of `meta`; `None`: it is a column of the table, or a delta's operation.
    pub meta: Option<MetaColumn>,
}

/// The form in which Postgres sends a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireFormat {
    /// In the binary form of their kind.
    Binary,
    /// As the texts that it writes them as.
    Written,
    /// As arrays in the binary form of their elements. Only for Parquet.
    List(ListElement),
}

/// The elements of a column of arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListElement {
    pub kind: ColumnType,
    pub parquet: ParquetType,
}

impl TableColumn {
    /// A column that is sent in the binary form of its kind.
    pub const fn named(name: &'static str, kind: ColumnType) -> TableColumn {
        TableColumn {
            name: Cow::Borrowed(name),
            rename: None,
            number: 0,
            kind,
            type_name: Cow::Borrowed(""),
            domain_base: None,
            base_type: Cow::Borrowed(""),
            wire_format: WireFormat::Binary,
            operators: Cow::Borrowed("pg_catalog"),
            parquet: ParquetType::OfKind,
            list: None,
            null_if_unrepresentable: false,
            mask: None,
            meta: None,
        }
    }

    pub fn file_name(&self) -> Cow<'static, str> {
        self.rename.clone().map_or_else(|| self.name.clone(), Cow::Owned)
    }

    /// Returns the column of a file that has its values. `None` if its mask needs a secret, and there is none.
    pub fn in_file(&self, secret: Option<&MaskSecret>) -> Option<pg_rows::column::Column> {
        let TableColumn { null_if_unrepresentable, .. } = *self;
        let (kind, parquet, is_list) = match self.wire_format {
            WireFormat::List(element) => (element.kind, element.parquet, true),
            WireFormat::Binary | WireFormat::Written => (self.kind, self.parquet, false),
        };
        let mask = match &self.mask {
            Some(rule) => Some(rule.mask(secret)?),
            None => None,
        };
        Some(pg_rows::column::Column { name: self.file_name(), kind, is_list, parquet, null_if_unrepresentable, mask })
    }

    /// Returns the Postgres type of its values in a file.
    pub fn file_type(&self) -> &str {
        match &self.mask {
            Some(rule) => rule.file_type(),
            None => &self.type_name,
        }
    }
}

/// A column of a key, and how its unique index tells values apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    pub column: TableColumn,
    /// The type to read its text as, with its schema unless it is Postgres's own: a domain's base. A `char` has its
    /// length, to which it is padded.
    pub read_as: String,
    /// The operator that is true of two values which the index takes for one, with its schema.
    pub equals: String,
    /// The collation of the index, quoted, if it has one: a comparison in another collation finds nothing by the index.
    pub collation: Option<String>,
    /// True if values that are the same to that operator always have the same text. Where not (`citext`, 1.0 and 1.00),
    /// a consumer, who has the texts, takes for two rows what the index takes for one.
    pub has_one_text: bool,
}
