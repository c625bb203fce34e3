//! The SQL of each export. Names come from a [`Dataset`] alone and are quoted here, in one place.

use crate::dataset::{Column, Dataset, Kind};

/// Every live row. Without parameters, which COPY doesn't take.
pub(crate) fn full(dataset: &Dataset) -> String {
    let (table, columns, deleted) = (quoted(dataset.table), columns(dataset), quoted(dataset.deleted));
    format!("select {columns} from {table} where not {deleted}")
}

/// The live rows changed since `$1`; NULL: since the beginning.
pub(crate) fn incremental(dataset: &Dataset) -> String {
    format!("{} and {}", full(dataset), changed(dataset))
}

/// The rows changed since `$1`, deleted ones too, each with its operation: two statements to be read one after the other, so
/// that the deletions come first without a sort of everything.
pub(crate) fn delta(dataset: &Dataset) -> [String; 2] {
    let (table, columns, deleted) = (quoted(dataset.table), columns(dataset), quoted(dataset.deleted));
    let (created_at, updated_at) = (quoted(dataset.created_at), quoted(dataset.updated_at));
    let changed = changed(dataset);
    let operation = format!("case when {created_at} = {updated_at} then 'INSERT' else 'UPDATE' end");
    [
        format!("select 'DELETE'::text, {columns} from {table} where {deleted} and {changed}"),
        format!("select {operation}, {columns} from {table} where not {deleted} and {changed}"),
    ]
}

fn changed(dataset: &Dataset) -> String {
    format!("($1::timestamptz is null or {} > $1)", quoted(dataset.updated_at))
}

/// A name as an identifier.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Every column in the type whose binary form the encoder knows. A cast to the type a column has costs nothing.
fn columns(dataset: &Dataset) -> String {
    let cast = |column: &Column| {
        let type_name = match column.kind {
            Kind::Int8 => "int8",
            Kind::Bool => "bool",
            Kind::Text => "text",
            Kind::Timestamptz => "timestamptz",
        };
        format!("{}::{type_name}", quoted(column.name))
    };
    dataset.columns.iter().map(cast).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted(r#"a"b"#), r#""a""b""#);
    }

    #[test]
    fn a_delta_reads_its_deletions_first() {
        let [deletions, live] = delta(&crate::dataset::USERS);
        assert!(deletions.contains(r#"where "is_deleted""#) && deletions.starts_with("select 'DELETE'"));
        assert!(live.contains(r#"where not "is_deleted""#));
    }
}
