//! Reads properties of the target's table from the Postgres catalog.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::apply::{During, Error, Settings};
use crate::connection::quoted;
use crate::dataset::Table;
use crate::manifest::{Chained, ManifestColumn};

/// The schema of the positions.
pub(super) const POSITIONS_SCHEMA: &str = "cdc_apply";

/// The operator that compares two values of most types for equality.
pub(super) const EQUAL: &str = "operator(pg_catalog.=)";

pub(super) const INSPECT_TABLE: &str = "to read the table's definition";

/// A column of the target's table.
#[derive(sqlx_macros::FromRow)]
pub(super) struct ExistingColumn {
    pub(super) name: String,
    pub(super) type_name: String,
    pub(super) is_generated: bool,
    /// True if Postgres refuses to update the column: an identity that is `generated always`.
    pub(super) is_identity: bool,
    /// The type of the column. For a domain its base type, because a domain may refuse NULL.
    pub(super) base_type: String,
    /// True if the type is an enum. Two labels are equal only if their texts are equal.
    pub(super) is_enum: bool,
    /// True if the column or a unique index on it has a nondeterministic collation. Different texts may then be equal.
    pub(super) folds_texts: bool,
    /// The operator that compares two values for equality.
    pub(super) equal: String,
    /// True if another server may write the column's values differently: `money` follows `lc_monetary`, and `"char"`
    /// has other texts before Postgres 15.
    pub(super) depends_on_server: bool,
    /// The attribute number. A column that is removed and added again has another number.
    pub(super) number: i16,
}

/// Returns the column with the operation on the row: the first one of a delta.
pub(super) fn operation(export: &Chained) -> Option<&ManifestColumn> {
    export.columns.first().filter(|_| export.export_type == "delta")
}

/// Returns the columns of the export that are columns of the table: all but the operation of a delta and, unless they
/// are kept, the columns of `meta`.
pub(super) fn target_columns<'e>(
    export: &'e Chained,
    settings: &Settings,
) -> impl Iterator<Item = &'e ManifestColumn> + use<'e> {
    let (operations, keeps_meta) = (usize::from(operation(export).is_some()), settings.keeps_meta);
    export.columns.iter().skip(operations).filter(move |column| keeps_meta || column.meta.is_none())
}

/// Returns a table's name as SQL.
pub(super) fn relation(table: &Table) -> String {
    let schema = table.schema.as_ref().map(|schema| format!("{}.", quoted(schema))).unwrap_or_default();
    format!("{schema}{}", quoted(&table.name))
}

/// Returns true if the table exists. Returns an error if another relation has its name.
pub(super) async fn exists(conn: &mut PgConnection, table: &Table) -> Result<bool, Error> {
    let kind: Option<String> = sqlx::query_scalar(
        "-- apply.catalog.kind
         select case relpersistence when 'u' then 'unlogged' else relkind::text end from pg_class where oid = to_regclass($1)",
    )
    .bind(relation(table))
    .fetch_optional(conn)
    .await
    .during(INSPECT_TABLE)?;
    match kind.as_deref() {
        None => Ok(false),
        Some("r" | "p") => Ok(true),
        Some("unlogged") => Err(Error::refused(
            "target_changed",
            format!("{table} is unlogged: a crash of its server would empty it without notice"),
        )),
        Some(other) => {
            let kind = match other {
                "v" => "a view",
                "m" => "a materialized view",
                "f" => "a foreign table",
                _ => "no table",
            };
            let why = format!("{table} is {kind} in the target database: drop it, or choose another table or schema");
            Err(Error::refused("target_changed", why))
        }
    }
}

pub(super) async fn oid(conn: &mut PgConnection, table: &str) -> Result<i64, Error> {
    let oid = sqlx::query_scalar("-- apply.catalog.oid\n select $1::regclass::oid::int8");
    oid.bind(table).fetch_one(conn).await.during(INSPECT_TABLE)
}

pub(super) async fn is_empty(conn: &mut PgConnection, table: &str) -> Result<bool, Error> {
    let empty = format!("-- apply.catalog.is_empty\n select not exists (select from {table})");
    sqlx::query_scalar(AssertSqlSafe(empty)).fetch_one(conn).await.during("to read the table")
}

pub(super) async fn columns(conn: &mut PgConnection, table: &str) -> Result<Vec<ExistingColumn>, Error> {
    let found = sqlx::query_as(include_str!("catalog/columns.sql"));
    found.bind(table).fetch_all(conn).await.during(INSPECT_TABLE)
}

/// Returns the attribute numbers of the export's columns, by column name.
pub(super) fn numbers(present: &[ExistingColumn], export: &Chained, settings: &Settings) -> BTreeMap<String, i16> {
    let number = |name: &str| Some(present.iter().find(|column| column.name == name)?.number);
    let number = |column: &ManifestColumn| Some((column.name.clone(), number(&column.name)?));
    target_columns(export, settings).filter_map(number).collect()
}
