//! What a database remembers of a dataset or a file, to notice a change: texts of a stated form, of which the MD5 is saved.
//!
//! The form is part of what the service promises, since every saved position is compared with it: a form is never changed. A new
//! one gets a new version, in front of the others.

use std::sync::LazyLock;

use pg_rows::column::ParquetType;

use crate::dataset::{Capture, Column, Dataset, TableSchema};

/// The same thing in every form that a database may have the MD5 of, the newest first: that one is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature([String; 2]);

impl Signature {
    fn of_rows(dataset: &Dataset) -> Signature {
        Signature([rows_v1(dataset), rows_v0(dataset)])
    }

    fn of_columns(columns: &[Column]) -> Signature {
        Signature([columns_v1(columns), columns_v0(columns)])
    }

    /// The form that is saved.
    pub fn newest(&self) -> &str {
        &self.0[0]
    }

    /// Every form, the newest first.
    pub fn forms(&self) -> &[String] {
        &self.0
    }
}

impl Dataset {
    /// What decides which rows a consumer has after an export, for comparison: where it changes, what a consumer has is no
    /// longer what deltas go on from.
    pub fn definition(&self) -> Signature {
        Signature::of_rows(self)
    }
}

impl TableSchema {
    /// Names and types of a file's columns, for comparison.
    pub fn signature(&self) -> Signature {
        Signature::of_columns(&self.columns)
    }
}

/// A line for each member that decides, its value in JSON.
fn rows_v1(dataset: &Dataset) -> String {
    let Dataset { key, filter, deleted, capture, updated_at, .. } = dataset;
    let key = key.as_ref().map_or("null".to_owned(), |names| json_list(names));
    let (filter, deleted) = (json_or_null(filter.as_deref()), json_or_null(deleted.as_deref()));
    let capture = match capture {
        Capture::Triggers => "capture=\"triggers\"\n".to_owned(),
        // How long an overlap is changes no row's belonging.
        Capture::Timestamp { .. } => {
            format!("capture=\"timestamp\"\nupdated_at={}\n", json_or_null(updated_at.as_deref()))
        }
    };
    format!("v1\nkey={key}\nfilter={filter}\ndeleted={deleted}\n{capture}")
}

/// What a dataset has asked a column to be in Parquet: no form of before has anything of it, so that those of other columns stay.
fn asked(column: &Column) -> Option<&'static str> {
    match column.parquet {
        ParquetType::OfKind => None,
        // Its digits are in its type's name.
        ParquetType::Decimal { .. } => Some("decimal"),
        ParquetType::Text => Some("text"),
    }
}

/// A line for each column: its name, its type, and what it was asked to be in Parquet, as JSON.
fn columns_v1(columns: &[Column]) -> String {
    let line = |column: &Column| {
        let members: Vec<_> = [&*column.name, &*column.type_name].into_iter().chain(asked(column)).collect();
        format!("{}\n", json_list(&members))
    };
    format!("v1\n{}", columns.iter().map(line).collect::<String>())
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn json_or_null(text: Option<&str>) -> String {
    text.map_or("null".to_owned(), json)
}

fn json_list(texts: &[impl AsRef<str>]) -> String {
    format!("[{}]", texts.iter().map(|text| json(text.as_ref())).collect::<Vec<_>>().join(","))
}

/// The form of version 0.1.0, which was what `Debug` wrote of the members. Written by hand, so that no change of a type or of the
/// standard library makes another text of it.
fn rows_v0(dataset: &Dataset) -> String {
    let Dataset { key, filter, deleted, capture, updated_at, .. } = dataset;
    let some = |text: String| format!("Some({text})");
    let key = key.as_ref().map(|names| {
        let names: Vec<_> = names.iter().map(|name| debug(name)).collect();
        format!("[{}]", names.join(", "))
    });
    let times = match capture {
        Capture::Triggers => None,
        Capture::Timestamp { .. } => Some(updated_at.as_deref().map(debug).map_or("None".to_owned(), some)),
    };
    let members = [key, filter.as_deref().map(debug), deleted.as_deref().map(debug), times];
    members.map(|member| member.map_or("None".to_owned(), some)).join(" ")
}

fn columns_v0(columns: &[Column]) -> String {
    let column = |column: &Column| {
        let asked = asked(column).map(|word| format!(" {word}")).unwrap_or_default();
        format!("{} {}{asked}", debug(&column.name), column.type_name)
    };
    columns.iter().map(column).collect::<Vec<_>>().join(", ")
}

/// A text as Rust 1.95 quoted and escaped it.
fn debug(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '\0' => quoted.push_str("\\0"),
            '\t' => quoted.push_str("\\t"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '"' | '\\' => quoted.extend(['\\', c]),
            c if is_escaped(c) => quoted.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// Whether Rust 1.95 wrote a character as its number: it isn't printed, or combines with the one before it.
fn is_escaped(c: char) -> bool {
    static BEYOND_ASCII: LazyLock<Vec<(u32, u32)>> = LazyLock::new(|| {
        let number = |text: &str| u32::from_str_radix(text, 16).expect("the file has hexadecimal numbers");
        let range = |word: &str| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            (number(first), number(last))
        };
        include_str!("escaped.txt").split_whitespace().map(range).collect()
    });
    let c = u32::from(c);
    // In order, and apart.
    let at = BEYOND_ASCII.partition_point(|(_, last)| *last < c);
    c < 0x20 || c == 0x7f || BEYOND_ASCII.get(at).is_some_and(|(first, _)| *first <= c)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use pg_rows::column::ColumnType;

    /// A dataset with every member that decides, and characters that are written in a way of their own.
    fn orders() -> Dataset {
        Dataset {
            name: "orders".to_owned(),
            key: Some(vec!["region".to_owned(), "a \"b\"\\".to_owned()]),
            filter: Some(
                "tenant = 'Zürich' \n\tand 'it''s' <> E'\\0' and x = 'e\u{301}\u{200b}\u{1f600}\u{fe0f}\u{7f}\u{0}\r'"
                    .to_owned(),
            ),
            deleted: None,
            decimals: false,
            uuid_texts: false,
            updated_at: Some("modified_at".to_owned()),
            capture: Capture::Timestamp { overlap: Duration::from_secs(300) },
            ..Dataset::users()
        }
    }

    #[test]
    fn the_form_of_rows_is_never_changed() {
        let users = Signature::of_rows(&Dataset::users());
        assert_eq!(users.newest(), "v1\nkey=null\nfilter=null\ndeleted=\"is_deleted\"\ncapture=\"triggers\"\n");
        let orders = Signature::of_rows(&orders());
        assert_eq!(
            orders.newest(),
            "v1\nkey=[\"region\",\"a \\\"b\\\"\\\\\"]\nfilter=\"tenant = 'Zürich' \\n\\tand 'it''s' <> E'\\\\0' and x = \
             'e\u{301}\u{200b}\u{1f600}\u{fe0f}\u{7f}\\u0000\\r'\"\ndeleted=null\ncapture=\"timestamp\"\nupdated_at=\"modified_at\"\n"
        );
    }

    #[test]
    fn the_form_of_columns_is_never_changed() {
        let column = |name: &'static str, type_name: &'static str| Column {
            type_name: type_name.into(),
            ..Column::named(name, ColumnType::Text)
        };
        let columns = Signature::of_columns(&[column("id", "bigint"), column("a \"b\"", "numeric(10,2)")]);
        assert_eq!(columns.newest(), "v1\n[\"id\",\"bigint\"]\n[\"a \\\"b\\\"\",\"numeric(10,2)\"]\n");
        assert_eq!(columns.forms()[1], "\"id\" bigint, \"a \\\"b\\\"\" numeric(10,2)");
        assert_eq!(Signature::of_columns(&[]).forms(), ["v1\n", ""]);
        // A consumer's Parquet has another type: it is told, or it would compare bytes with texts.
        let price =
            Column { parquet: ParquetType::Decimal { precision: 10, scale: 2 }, ..column("p", "numeric(10,2)") };
        let id = Column { parquet: ParquetType::Text, ..column("u", "uuid") };
        let asked = Signature::of_columns(&[price, id]);
        assert_eq!(asked.newest(), "v1\n[\"p\",\"numeric(10,2)\",\"decimal\"]\n[\"u\",\"uuid\",\"text\"]\n");
        assert_eq!(asked.forms()[1], "\"p\" numeric(10,2) decimal, \"u\" uuid text");
    }

    /// Texts that version 0.1.0 made, of which databases have the MD5.
    #[test]
    fn what_was_saved_before_is_known_again() {
        assert_eq!(Signature::of_rows(&Dataset::users()).forms()[1], r#"None None Some("is_deleted") None"#);
        assert_eq!(
            Signature::of_rows(&orders()).forms()[1],
            "Some([\"region\", \"a \\\"b\\\"\\\\\"]) Some(\"tenant = 'Zürich' \\n\\tand 'it''s' <> E'\\\\0' and x = \
             'e\\u{301}\\u{200b}😀\\u{fe0f}\\u{7f}\\0\\r'\") None Some(Some(\"modified_at\"))"
        );
        let none = Dataset { key: Some(Vec::new()), updated_at: None, ..orders() };
        assert!(Signature::of_rows(&none).forms()[1].ends_with(" None Some(None)"));
        assert!(Signature::of_rows(&none).forms()[1].starts_with("Some([]) Some(\""));
        // Of every character there is, as Rust 1.95 wrote it.
        let all: String = (0..=0x0010_ffff).filter_map(char::from_u32).collect();
        let digest = ring::digest::digest(&ring::digest::SHA256, debug(&all).as_bytes());
        let digest = hex::encode(digest);
        assert_eq!(digest, "29e7370e7288dc467d47b81d2b5c9740d2b48fd6b0903ea9786495ba18a04a32");
    }

    /// What says how values are written, or which columns there are, isn't what decides about rows.
    #[test]
    fn what_decides_nothing_is_in_no_form() {
        let users = Dataset::users();
        let other = Dataset {
            name: "people".to_owned(),
            columns: crate::dataset::Columns::All,
            updated_at: None,
            created_at: None,
            ..Dataset::users()
        };
        assert_eq!(Signature::of_rows(&users), Signature::of_rows(&other));
        let longer = Dataset { capture: Capture::Timestamp { overlap: Duration::from_secs(1) }, ..orders() };
        assert_eq!(Signature::of_rows(&orders()), Signature::of_rows(&longer));
    }
}
