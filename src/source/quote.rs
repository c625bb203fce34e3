//! Names and texts as SQL has them: whatever is in a name, it is one name.

use crate::dataset::Table;

pub(crate) use crate::connection::quoted;

/// A table's name, with its schema if that is said.
pub(crate) fn relation(table: &Table) -> String {
    let schema = table.schema.as_ref().map(|schema| format!("{}.", quoted(schema))).unwrap_or_default();
    format!("{schema}{}", quoted(&table.name))
}

/// A text as a constant.
pub(crate) fn literal(text: &str) -> String {
    // With a backslash in it, it would depend on a setting.
    let escape = if text.contains('\\') { " E" } else { "" };
    format!("{escape}'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted(r#"a"b"#), r#""a""b""#);
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(literal(r"a\'b"), r" E'a\\''b'");
        let table = Table { schema: Some("S".to_owned()), name: "a.b".to_owned() };
        assert_eq!(relation(&table), r#""S"."a.b""#);
    }
}
