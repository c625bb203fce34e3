//! The SQL of each export. Names come from a [`Dataset`] alone and are quoted here, in one place.
//!
//! The parameters of the changes: `$1` the watermark, null, with `$3`, to begin from the beginning; `$2` the table's oid; `$3` and `$4` the
//! snapshots up to which live rows and deletions are delivered, null where the watermark alone rules. Their last column says
//! whether the row is gone from the table.

use crate::dataset::{CellMax, Column, Dataset, Kind};

/// What tells that a live row has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Its time is after the watermark: there is no snapshot to compare the log with.
    TimeAlone,
    /// That, or the log.
    LogToo,
}

/// Every live row. Without parameters, which COPY doesn't take. Without `max` where no cell can be so large: the comparison is
/// a quarter of what the scan costs.
pub(crate) fn full(dataset: &Dataset, max: Option<CellMax>) -> String {
    let (table, columns, deleted) = (quoted(dataset.table), columns(dataset, "u"), quoted(dataset.deleted));
    // Postgres asks first what costs less, so that a deleted row has no say.
    let within = max.map(|max| format!(" and not {}", refused(&cells(dataset, "u"), max))).unwrap_or_default();
    format!("select {columns} from {table} u where not u.{deleted}{within}")
}

/// The live rows changed since.
pub(crate) fn incremental(dataset: &Dataset, rule: Rule, max: CellMax) -> String {
    changed_live(dataset, rule, "", max)
}

/// The rows changed since, deleted ones too, each with its operation: two statements to be read one after the other, so that
/// the deletions come first without a sort of everything.
pub(crate) fn delta(dataset: &Dataset, rule: Rule, max: CellMax) -> [String; 2] {
    let (created_at, updated_at) = (quoted(dataset.created_at), quoted(dataset.updated_at));
    let operation = format!("case when u.{created_at} = u.{updated_at} then 'INSERT' else 'UPDATE' end, ");
    [changed_deleted(dataset, max), changed_live(dataset, rule, &operation, max)]
}

/// What the log knows and what the stated rule says, once. By a union, not an anti-join: the statistics don't know yet what was
/// written since they were made, and for the few rows that the planner then expects it compares each with each.
fn changed_live(dataset: &Dataset, rule: Rule, operation: &str, max: CellMax) -> String {
    let (table, key, deleted) = (quoted(dataset.table), quoted(dataset.key), quoted(dataset.deleted));
    // Not a condition, which might be asked of rows that have not changed.
    let columns = format!("{}, {}", columns(dataset, "u"), refused(&cells(dataset, "u"), max));
    let (logged, stated) = (logged("$3"), stated(dataset));
    if rule == Rule::TimeAlone {
        return format!("select {operation}{columns} from {table} u where {stated} and not u.{deleted}");
    }
    format!(
        "with ch as materialized (
           select pk::bigint as id from cdc_export.change_log where {logged}
           union
           select u.{key} from {table} u where {stated} and not u.{deleted}
           -- In their order they are found side by side in the index, and mostly in the table.
           order by 1)
         select {operation}{columns} from ch join {table} u on u.{key} = ch.id where not u.{deleted}"
    )
}

/// A row that is gone is written as the log has it last.
fn changed_deleted(dataset: &Dataset, max: CellMax) -> String {
    let (table, key, deleted) = (quoted(dataset.table), quoted(dataset.key), quoted(dataset.deleted));
    let (logged, stated) = (logged("$4"), stated(dataset));
    let either = |column: &Column| {
        let name = quoted(&column.name);
        // The log's image has no deleted flag set: the row was alive when it went.
        let gone = if column.name == dataset.deleted {
            "true".to_owned()
        } else if column.name == dataset.key {
            "ch.id".to_owned()
        } else {
            format!("o.{name}")
        };
        format!("case when u.{key} is null then {gone} else u.{name} end::{}", type_of(column))
    };
    let refused = refused(&cells_of(dataset, either), max);
    let either = dataset.columns.iter().map(either).collect::<Vec<_>>().join(", ");
    let image = dataset.columns.iter().map(|column| format!("{} {}", quoted(&column.name), type_of(column)));
    let image = image.collect::<Vec<_>>().join(", ");
    format!(
        "with ch as materialized (
           select id, (array_agg(old order by seq desc) filter (where op = 'D'))[1] as old
           from (
             select pk::bigint, seq, op, old from cdc_export.change_log where {logged}
             union all
             select u.{key}, null, null, null from {table} u where {stated} and u.{deleted}) as changes (id, seq, op, old)
           group by id
           order by id)
         select 'DELETE'::text, {either}, {refused} or u.{key} is null
         from ch
         left join {table} u on u.{key} = ch.id
         left join lateral jsonb_to_record(ch.old) as o ({image}) on u.{key} is null
         where u.{key} is null or u.{deleted}"
    )
}

/// Logged by a transaction that the snapshot could not see: an index range, and an exact test.
fn logged(snapshot: &str) -> String {
    let snapshot = format!("{snapshot}::text::pg_snapshot");
    format!(
        "tbl = $2::oid and pk is not null and xid >= pg_snapshot_xmin({snapshot}) and not pg_visible_in_snapshot(xid, {snapshot})"
    )
}

/// The stated rule. A row at infinity, or so far ahead that its time can't be a watermark, is above every one: it would come
/// each time, and its changes are in the log. So it is with every row where there is a position and no watermark, since none
/// that was exported had a time that could be.
fn stated(dataset: &Dataset) -> String {
    let updated_at = quoted(dataset.updated_at);
    format!(
        "($1::timestamptz is null and $3::text is null
            or u.{updated_at} > $1 and (u.{updated_at} < '200000-01-01 00:00:00+00' or $3::text is null))"
    )
}

/// A name as an identifier.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Every column in the type whose binary form the encoder knows. A cast to the type a column has costs nothing.
fn columns(dataset: &Dataset, of: &str) -> String {
    let cast = |column: &Column| format!("{of}.{}::{}", quoted(&column.name), type_of(column));
    dataset.columns.iter().map(cast).collect::<Vec<_>>().join(", ")
}

/// The columns whose values may be large, each as its name and an expression.
fn cells<'d>(dataset: &'d Dataset, of: &str) -> Vec<(&'d str, String)> {
    cells_of(dataset, |column| format!("{of}.{}::{}", quoted(&column.name), type_of(column)))
}

fn cells_of(dataset: &Dataset, expression: impl Fn(&Column) -> String) -> Vec<(&str, String)> {
    let large = |column: &&Column| match column.kind {
        Kind::Text | Kind::Bytea | Kind::Json | Kind::Jsonb => true,
        // A numeric ends at 150 kB of text.
        Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Float4 | Kind::Float8 | Kind::Numeric | Kind::Bool => false,
        Kind::Timestamptz | Kind::Timestamp | Kind::Date | Kind::Time | Kind::Uuid => false,
    };
    let cell = |column: &Column| match column.kind {
        // Postgres knows no length of a JSON but that of its text.
        Kind::Json | Kind::Jsonb => format!("({})::text", expression(column)),
        _ => expression(column),
    };
    dataset.columns.iter().filter(large).map(|column| (&*column.name, cell(column))).collect()
}

/// False; with a cell beyond the bound, the end of the export. Here, and not when the row has come, since a client takes a row
/// into its memory before it can see how large it is. `octet_length` doesn't fetch a large value.
fn refused(cells: &[(&str, String)], CellMax(max): CellMax) -> String {
    if cells.is_empty() {
        return "false".to_owned();
    }
    let large = |(_, cell): &(&str, String)| format!("octet_length({cell}) > {max}");
    let named = |cell: &(&str, String)| format!("when {} then {}", large(cell), literal(cell.0));
    let any = cells.iter().map(large).collect::<Vec<_>>().join(" or ");
    let name = cells.iter().map(named).collect::<Vec<_>>().join(" ");
    format!("(({any}) is true and cdc_export.refuse_cell(case {name} end))")
}

/// A name as a text.
fn literal(name: &str) -> String {
    format!("'{}'", name.replace('\'', "''"))
}

fn type_of(column: &Column) -> &'static str {
    match column.kind {
        Kind::Int2 => "int2",
        Kind::Int4 => "int4",
        Kind::Int8 => "int8",
        Kind::Float4 => "float4",
        Kind::Float8 => "float8",
        Kind::Numeric => "numeric",
        Kind::Bool => "bool",
        Kind::Text => "text",
        Kind::Uuid => "uuid",
        Kind::Bytea => "bytea",
        Kind::Json => "json",
        Kind::Jsonb => "jsonb",
        Kind::Timestamptz => "timestamptz",
        Kind::Timestamp => "timestamp",
        Kind::Date => "date",
        Kind::Time => "time",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted(r#"a"b"#), r#""a""b""#);
        assert_eq!(literal("a'b"), "'a''b'");
    }
}
