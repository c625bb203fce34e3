//! A column's value in SQL: how it is compared, how it is sent, and how large it may be.

use crate::quote::{literal, quoted};
use cdc_dataset::{CellMax, TableColumn, TableSchema, WireFormat};
use pg_rows::column::ColumnType;

/// A stored byte is written as so many at most: what compresses values does it 255 times at best, and a byte is a few
/// in a text.
const MOST_WRITTEN: u64 = 4096;

/// A column of a row `u` to be compared, in its base type: others may have made operators of a domain, which would fit
/// better.
pub(crate) fn compared(column: &TableColumn) -> String {
    format!("u.{}::{}", quoted(&column.name), column.base_type)
}

/// A moment as the column of times of this schema has it: one without a zone is by a clock of the dataset's zone. Also
/// makes a moment of a value of the column.
pub(crate) fn in_zone_of(column: &TableColumn, schema: &TableSchema, moment: &str) -> String {
    let zone = schema.time_zone.as_deref().unwrap_or("UTC");
    match column.kind {
        ColumnType::Timestamp => format!("({moment} at time zone {})", literal(zone)),
        _ => moment.to_owned(),
    }
}

/// A value in the form that the encoder knows.
pub(crate) fn wire_value(column: &TableColumn, value: &str) -> String {
    match column.wire_format {
        // The same bytes as a text, which nobody parses.
        WireFormat::Binary if column.kind == ColumnType::Json => format!("{value}::{}::text", column.base_type),
        // To the type that it has, which costs nothing.
        WireFormat::Binary | WireFormat::List(_) => format!("{value}::{}", column.base_type),
        // By the type's output function, as COPY does: a cast loses the padding of a `char`. NULL stays, and a row of
        // nulls isn't one.
        WireFormat::Written => {
            format!("case when pg_catalog.num_nulls({value}) = 0 then pg_catalog.concat({value}) end")
        }
    }
}

/// Returns true if a value is sent as a text that its type wrote.
pub(crate) fn is_text(column: &TableColumn) -> bool {
    match column.wire_format {
        WireFormat::Binary => column.kind == ColumnType::Json,
        WireFormat::Written => true,
        WireFormat::List(_) => false,
    }
}

/// The number of bytes of a value in that form, or of its text.
pub(crate) fn octets(column: &TableColumn, value: &str) -> String {
    match (column.kind, column.wire_format) {
        (_, WireFormat::List(_)) => format!("pg_catalog.octet_length(pg_catalog.array_send({value}))"),
        // Postgres knows no length of a JSON but that of its text.
        (ColumnType::Json | ColumnType::Jsonb, _) => format!("pg_catalog.octet_length(({value})::text)"),
        _ => format!("pg_catalog.octet_length({value})"),
    }
}

/// Returns true if a value may be larger than a bound of memory.
pub(crate) fn may_be_large(column: &TableColumn) -> bool {
    // A numeric ends at 150 kB of text.
    matches!(column.kind, ColumnType::Text | ColumnType::Bytea | ColumnType::Json | ColumnType::Jsonb)
}

/// False, or an error that names the first of these cells, each a name and a test, whose test is true.
pub(crate) fn refused(cells: &[(String, String)]) -> String {
    if cells.is_empty() {
        return "false".to_owned();
    }
    let any = cells.iter().map(|(_, large)| large.as_str()).collect::<Vec<_>>().join(" or ");
    let named = |(name, large): &(String, String)| format!("when {large} then {}", literal(name));
    let name = cells.iter().map(named).collect::<Vec<_>>().join(" ");
    format!("(({any}) is true and cdc_export.refuse_cell(case {name} end))")
}

/// False, or an error where a cell of a row `u` is beyond the bound. Postgres tests it, since a client takes a row into
/// its memory before it can see how large the row is.
pub(crate) fn refused_of_row(columns: &[TableColumn], CellMax(max): CellMax) -> String {
    let cell = |column: &TableColumn| {
        let name = format!("u.{}", quoted(&column.name));
        let size = format!("{} > {max}", octets(column, &wire_value(column, &name)));
        // `octet_length` doesn't fetch a text that is kept outside of its row. What has to be made a text is made one
        // only where it takes so much room that it may be large.
        let test = match (column.kind, column.wire_format) {
            (ColumnType::Text | ColumnType::Bytea, WireFormat::Binary) => size,
            _ => format!("(pg_catalog.pg_column_size({name}) > {} and {size})", max / MOST_WRITTEN),
        };
        (column.name.to_string(), test)
    };
    refused(&columns.iter().filter(|column| may_be_large(column)).map(cell).collect::<Vec<_>>())
}
