//! The selection of an ad-hoc export: columns and rows of its dataset.

use serde::{Deserialize, Serialize};

/// The columns and rows that an ad-hoc export selects from its dataset. The default selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// The columns of the file. `None` selects all columns of the dataset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// The conditions. A row must meet all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<Condition>,
    /// The largest number of rows, in the order of the key. `None` sets no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

impl Selection {
    pub fn is_all(&self) -> bool {
        *self == Selection::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct BadSelection {
    /// The path of the invalid member, for example `filter[0].value`.
    pub field: String,
    pub why: String,
    /// True if it would tell values of a masked column.
    pub is_masked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub column: String,
    pub operator: Operator,
    /// The value to compare with, in the text form of the column's type. It is a JSON array of such texts for
    /// [`Operator::In`], and `true` or `false` for [`Operator::IsNull`].
    pub value: String,
}

pg_rows::words! {
    /// A comparison of a column with a value.
    Operator, "an operator:" {
        /// Equal.
        Eq = "eq",
        /// Not equal.
        Ne = "ne",
        /// Less.
        Lt = "lt",
        /// Less or equal.
        Lte = "lte",
        /// Greater.
        Gt = "gt",
        /// Greater or equal.
        Gte = "gte",
        /// One of several.
        In = "in",
        /// NULL, or not NULL.
        IsNull = "isNull",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every later version must read the JSON that an earlier version saved.
    #[test]
    fn saved_form_of_a_selection_is_stable_across_versions() {
        let saved = r#"{"columns":["id"],"filter":[{"column":"id","operator":"in","value":"[1,2]"}],"limit":5}"#;
        let condition = Condition { column: "id".to_owned(), operator: Operator::In, value: "[1,2]".to_owned() };
        let selection = Selection { columns: Some(vec!["id".to_owned()]), filter: vec![condition], limit: Some(5) };
        assert_eq!(serde_json::to_string(&selection).unwrap(), saved);
        assert_eq!(serde_json::from_str::<Selection>(saved).unwrap(), selection);
        assert_eq!(serde_json::to_string(&Selection::default()).unwrap(), "{}");
        let words: Vec<_> = Operator::ALL.iter().map(|operator| operator.as_str()).collect();
        assert_eq!(words, ["eq", "ne", "lt", "lte", "gt", "gte", "in", "isNull"]);
    }
}
