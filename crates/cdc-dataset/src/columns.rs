//! The columns of a job's file at the time when its rows were read. A later change of the table or the dataset does not
//! affect them.

use pg_rows::meta::MetaColumn;
use serde::{Deserialize, Serialize};

/// The columns and key of a file. They are saved with a completed job in this JSON form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileColumns {
    /// The columns in the file's order. The first column of a delta is `operation`.
    pub columns: Vec<FileColumn>,
    /// The names of the dataset's key columns. A selection can exclude them from the file.
    pub key: Vec<String>,
    pub table: String,
    /// The snapshot from which the rows were read. `None` if the dataset uses timestamps alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// True if the lane's position was removed, and the export is the first one since and no full one. It has every
    /// live row, and nothing of what was deleted before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub begins: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileColumn {
    pub name: String,
    /// The type with its length or precision, as Postgres writes it: `numeric(12,2)`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The type beneath a domain, with its length or precision. `None` if the type is no domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The wire format in which Postgres sent the values. Text if they are masked.
    pub wire: SavedWireFormat,
    /// The rule by which the values were masked. `None` if they were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// The kind of a column of `meta`. `None` for a column of the table and for the operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<MetaColumn>,
}

/// The wire format in which Postgres sent the values of a column, in the form that is saved with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavedWireFormat {
    Binary,
    Text,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every later version must read the JSON that an earlier version saved.
    #[test]
    fn saved_form_is_stable_across_versions() {
        let saved = r#"{"columns":[{"name":"id","type":"bigint","wire":"binary"},{"name":"at","type":"inet","wire":"text"}],"key":["id"],"table":"public.users"}"#;
        let column = |name: &str, type_name: &str, wire| FileColumn {
            name: name.into(),
            type_name: type_name.into(),
            base: None,
            wire,
            mask: None,
            meta: None,
        };
        let columns =
            vec![column("id", "bigint", SavedWireFormat::Binary), column("at", "inet", SavedWireFormat::Text)];
        let columns = FileColumns {
            columns,
            key: vec!["id".to_owned()],
            table: "public.users".into(),
            snapshot: None,
            begins: false,
        };
        assert_eq!(serde_json::to_string(&columns).unwrap(), saved);
        assert_eq!(serde_json::from_str::<FileColumns>(saved).unwrap(), columns);
        let columns = FileColumns { snapshot: Some("1:2:".into()), ..columns };
        let saved = saved.replace("users\"}", r#"users","snapshot":"1:2:"}"#);
        assert_eq!(serde_json::to_string(&columns).unwrap(), saved);
        assert_eq!(serde_json::from_str::<FileColumns>(&saved).unwrap(), columns);
    }
}
