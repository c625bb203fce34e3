//! The texts by which the service notices that a dataset or the columns of its files changed.
//!
//! The database keeps the MD5 of each text. Another text means a full export (`dataset_changed`) or `schemaChanged`, so
//! the form of a text is never changed for a dataset as it is. `v1` is the version of the form: a text of a version
//! that this service doesn't know has another MD5, and counts as a change.

use std::collections::BTreeMap;

use pg_rows::column::ParquetType;
use serde_json::json;

use crate::column::TableColumn;
use crate::dataset::{Capture, Dataset};
use crate::header::OPERATION;
use crate::table_schema::TableSchema;

impl Dataset {
    /// The members that decide which rows a consumer has after an export: a line for each, its value in JSON. After a
    /// change of one, a consumer needs a full export.
    pub fn definition(&self) -> String {
        let Dataset { key, filter, deleted, capture, updated_at, masks, .. } = self;
        let (key, filter, deleted) = (json!(key), json!(filter), json!(deleted));
        let capture = match capture {
            Capture::Triggers => "capture=\"triggers\"\n".to_owned(),
            // The overlap is left out: no row belongs to the dataset by it.
            Capture::Timestamp { .. } => format!("capture=\"timestamp\"\nupdated_at={}\n", json!(updated_at)),
            Capture::None => "capture=\"none\"\n".to_owned(),
        };
        let masks: BTreeMap<_, _> = masks.rules.iter().map(|(name, rule)| (name, rule.to_string())).collect();
        let masks = if masks.is_empty() { String::new() } else { format!("mask={}\n", json!(masks)) };
        // The watermark is a moment, which another zone reads as another time of the column.
        let zone = self.local_zone().map(|zone| format!("time_zone={}\n", json!(zone))).unwrap_or_default();
        format!("v1\nkey={key}\nfilter={filter}\ndeleted={deleted}\n{capture}{zone}{masks}")
    }
}

impl TableSchema {
    /// The columns of the dataset's files: a line for each, with its name, its type, and the Parquet type if the
    /// dataset asks for one.
    pub fn signature(&self) -> String {
        let meta: Vec<_> = self.meta.iter().copied().map(TableColumn::of_meta).collect();
        let operation = match &*self.operation.name {
            OPERATION => String::new(),
            name => format!("operation={}\n", json!(name)),
        };
        columns_signature(self.columns.iter().chain(&meta)) + &operation
    }
}

fn columns_signature<'a>(columns: impl IntoIterator<Item = &'a TableColumn>) -> String {
    let word = |parquet: ParquetType| match parquet {
        ParquetType::OfKind => None,
        // The number of digits is in the name of the column's type.
        ParquetType::Decimal { .. } => Some("decimal"),
        ParquetType::Text => Some("text"),
    };
    let line = |column: &TableColumn| {
        let name = column.file_name();
        let parquet = match column.list {
            _ if column.mask.is_some() => [None; 2],
            Some(element) => [Some("list"), word(element.parquet)],
            None => [word(column.parquet), None],
        };
        let words = parquet.into_iter().flatten();
        let members: Vec<_> = [&*name, column.file_type()].into_iter().chain(words).collect();
        format!("{}\n", json!(members))
    };
    format!("v1\n{}", columns.into_iter().map(line).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::column::ListElement;
    use crate::dataset::Columns;
    use pg_rows::column::ColumnType;

    /// A dataset with every member that decides, and characters that JSON escapes.
    fn orders() -> Dataset {
        Dataset {
            name: "orders".to_owned(),
            key: Some(vec!["region".to_owned(), "a \"b\"\\".to_owned()]),
            filter: Some(
                "tenant = 'Zürich' \n\tand 'it''s' <> E'\\0' and x = 'e\u{301}\u{200b}\u{1f600}\u{fe0f}\u{7f}\u{0}\r'"
                    .to_owned(),
            ),
            deleted: None,
            updated_at: Some("modified_at".to_owned()),
            capture: Capture::Timestamp { overlap: Duration::from_secs(300) },
            ..Dataset::users()
        }
    }

    #[test]
    fn the_form_of_a_definition_is_never_changed() {
        let users = Dataset::users().definition();
        assert_eq!(users, "v1\nkey=null\nfilter=null\ndeleted=\"is_deleted\"\ncapture=\"triggers\"\n");
        let orders = orders().definition();
        assert_eq!(
            orders,
            "v1\nkey=[\"region\",\"a \\\"b\\\"\\\\\"]\nfilter=\"tenant = 'Zürich' \\n\\tand 'it''s' <> E'\\\\0' and x = \
             'e\u{301}\u{200b}\u{1f600}\u{fe0f}\u{7f}\\u0000\\r'\"\ndeleted=null\ncapture=\"timestamp\"\nupdated_at=\"modified_at\"\n"
        );
    }

    #[test]
    fn a_time_zone_other_than_utc_is_part_of_the_definition() {
        let of = |zone: &str| Dataset { time_zone: Some(zone.to_owned()), ..orders() }.definition();
        assert_eq!(of("UTC"), orders().definition());
        assert_eq!(of("Asia/Kolkata"), orders().definition() + "time_zone=\"Asia/Kolkata\"\n");
    }

    #[test]
    fn the_form_of_columns_is_never_changed() {
        let column = |name: &'static str, type_name: &'static str| TableColumn {
            type_name: type_name.into(),
            ..TableColumn::named(name, ColumnType::Text)
        };
        let columns = columns_signature(&[column("id", "bigint"), column("a \"b\"", "numeric(10,2)")]);
        assert_eq!(columns, "v1\n[\"id\",\"bigint\"]\n[\"a \\\"b\\\"\",\"numeric(10,2)\"]\n");
        assert_eq!(columns_signature(&[]), "v1\n");
        // A Parquet type that the dataset asks for changes the bytes that a consumer gets.
        let price =
            TableColumn { parquet: ParquetType::Decimal { precision: 10, scale: 2 }, ..column("p", "numeric(10,2)") };
        let id = TableColumn { parquet: ParquetType::Text, ..column("u", "uuid") };
        let parquet = columns_signature(&[price, id]);
        assert_eq!(parquet, "v1\n[\"p\",\"numeric(10,2)\",\"decimal\"]\n[\"u\",\"uuid\",\"text\"]\n");
        let list = |parquet| {
            let element = ListElement { kind: ColumnType::Uuid, parquet };
            columns_signature(&[TableColumn { list: Some(element), ..column("l", "uuid[]") }])
        };
        assert_eq!(list(ParquetType::OfKind), "v1\n[\"l\",\"uuid[]\",\"list\"]\n");
        assert_eq!(list(ParquetType::Text), "v1\n[\"l\",\"uuid[]\",\"list\",\"text\"]\n");
    }

    /// A change of the name, the columns or the overlap changes no row that a consumer has.
    #[test]
    fn members_that_decide_no_row_are_not_in_the_definition() {
        let other = Dataset {
            name: "people".to_owned(),
            columns: Columns::All,
            updated_at: None,
            created_at: None,
            ..Dataset::users()
        };
        assert_eq!(Dataset::users().definition(), other.definition());
        let longer = Dataset { capture: Capture::Timestamp { overlap: Duration::from_secs(1) }, ..orders() };
        assert_eq!(orders().definition(), longer.definition());
    }
}
