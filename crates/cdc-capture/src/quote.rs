//! Names and texts as SQL has them: whatever is in a name, it is one name.

use chrono::{DateTime, Datelike, Utc};

use pg_session::table_name::Table;

pub(crate) use pg_session::quoted;

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

/// A time as a constant, to the microsecond.
pub(crate) fn timestamp(time: Option<DateTime<Utc>>) -> String {
    let Some(time) = time else { return "null::timestamptz".to_owned() };
    // Postgres takes no sign, and years before Christ by their name.
    let (year, era) = if time.year() > 0 { (time.year(), "") } else { (1 - time.year(), " BC") };
    format!("'{year:04}-{}{era}'::timestamptz", time.format("%m-%d %H:%M:%S%.6f+00"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted(r#"a"b"#), r#""a""b""#);
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(literal(r"a\'b"), r" E'a\\''b'");
        let time = |text: &str| timestamp(Some(text.parse().unwrap()));
        assert_eq!(time("2026-07-01T01:02:03.456789Z"), "'2026-07-01 01:02:03.456789+00'::timestamptz");
        assert_eq!(time("+12026-07-01T00:00:00Z"), "'12026-07-01 00:00:00.000000+00'::timestamptz");
        assert_eq!(time("-0001-07-01T00:00:00Z"), "'0002-07-01 00:00:00.000000+00 BC'::timestamptz");
        let table = Table { schema: Some("S".to_owned()), name: "a.b".to_owned() };
        assert_eq!(relation(&table), r#""S"."a.b""#);
    }
}
