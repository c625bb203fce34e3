//! The columns of a job's file, as they were when its rows were read: a table may be altered, and a dataset defined
//! anew, after that.

use serde::{Deserialize, Serialize};

/// The columns of a file, and the table's columns that tell its rows apart. Saved with a completed job in this form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileColumns {
    /// In the file's order; a delta's `operation` is the first.
    pub columns: Vec<FileColumn>,
    /// The names of the dataset's key columns. A selection may have left them out of the file.
    pub key: Vec<String>,
    /// The table, with its schema.
    pub table: String,
    /// The snapshot whose rows the file has; `None`: the dataset goes by its times alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}

/// A column of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileColumn {
    /// The name in the file's header.
    pub name: String,
    /// The type with its length or precision, as Postgres writes it: `numeric(12,2)`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The form in which Postgres sent the values.
    pub wire: Wire,
}

/// The form in which Postgres sent a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// In the binary form of the type.
    Binary,
    /// As the texts that Postgres writes them as.
    Text,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every later version reads what one version saved.
    #[test]
    fn the_form_is_never_changed() {
        let saved = r#"{"columns":[{"name":"id","type":"bigint","wire":"binary"},{"name":"at","type":"inet","wire":"text"}],"key":["id"],"table":"public.users"}"#;
        let column =
            |name: &str, type_name: &str, wire| FileColumn { name: name.into(), type_name: type_name.into(), wire };
        let columns = vec![column("id", "bigint", Wire::Binary), column("at", "inet", Wire::Text)];
        let columns = FileColumns { columns, key: vec!["id".to_owned()], table: "public.users".into(), snapshot: None };
        assert_eq!(serde_json::to_string(&columns).unwrap(), saved);
        assert_eq!(serde_json::from_str::<FileColumns>(saved).unwrap(), columns);
        let columns = FileColumns { snapshot: Some("1:2:".into()), ..columns };
        let saved = saved.replace("users\"}", r#"users","snapshot":"1:2:"}"#);
        assert_eq!(serde_json::to_string(&columns).unwrap(), saved);
        assert_eq!(serde_json::from_str::<FileColumns>(&saved).unwrap(), columns);
    }
}
