//! The names of a file's columns, and the columns that the service adds to those of the table.

use std::collections::BTreeMap;

use pg_rows::column::ColumnType;

use crate::column::TableColumn;
use pg_rows::meta::MetaColumn;

/// The name of a delta's first column, unless the operator gives it another one.
pub const OPERATION: &str = "operation";

/// The most bytes of a name, which is what Postgres gives a column's.
const LONGEST_NAME: usize = 63;

/// The columns that each table of Postgres has, whose names no other column can have.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "ctid", "xmin", "xmax", "cmin", "cmax"];

impl TableColumn {
    /// Returns a column of `meta` as the files have it.
    pub fn of_meta(meta: MetaColumn) -> TableColumn {
        let (name, kind, type_name) = match meta {
            MetaColumn::Order => ("_order", ColumnType::Int8, "bigint"),
            MetaColumn::Xid => ("_xid", ColumnType::Int8, "bigint"),
            MetaColumn::CommittedAt => ("_committed_at", ColumnType::Timestamptz, "timestamp with time zone"),
            MetaColumn::Operation => ("_operation", ColumnType::Text, "text"),
        };
        TableColumn { type_name: type_name.into(), meta: Some(meta), ..TableColumn::named(name, kind) }
    }
}

/// The operator's choices for the names of a dataset's columns, and for the columns beside the table's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileHeader {
    /// The names in the files, by the names in the table.
    pub renames: BTreeMap<String, String>,
    /// True if the table may lack some of the columns to rename, as the tables of a pattern may.
    pub renames_are_optional: bool,
    /// The name of a delta's first column; `None`: `operation`.
    pub operation: Option<String>,
    /// The columns to add behind the table's, in this order.
    pub meta: Vec<MetaColumn>,
}

impl FileHeader {
    /// Returns the first column of a delta: `INSERT`, `UPDATE` or `DELETE`.
    pub fn operation_column(&self) -> TableColumn {
        let name = self.operation.clone().map_or(OPERATION.into(), Into::into);
        TableColumn { name, type_name: "text".into(), ..TableColumn::named("", ColumnType::Text) }
    }

    /// Parses the name of a column in the files.
    ///
    /// # Errors
    /// If no table of Postgres could have a column of this name.
    pub fn column_name(text: &str) -> Result<String, String> {
        if !(1..=LONGEST_NAME).contains(&text.len()) || text.chars().any(char::is_control) {
            return Err(format!("the name of a column has 1 to {LONGEST_NAME} bytes, and no control characters"));
        }
        if SYSTEM_COLUMNS.contains(&text) {
            return Err(format!("a table can't have a column `{text}`: Postgres has one of this name in each table"));
        }
        Ok(text.to_owned())
    }
}
