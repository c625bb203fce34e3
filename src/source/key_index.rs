//! The unique index that tells a table's rows apart, and which types' texts do.

use sqlx::PgConnection;
use sqlx::types::Json;

use crate::dataset::Table;
use crate::source::placed::by_table;
use crate::source::quote::relation;

/// A column of a unique index.
#[derive(sqlx_macros::FromRow)]
pub(crate) struct KeyPart {
    /// The place of its table among those that were asked for.
    place: i64,
    pub(crate) name: String,
    /// The index's own, with its schema; `None`: its method has another one for every type.
    pub(crate) equals: Option<String>,
    /// Quoted.
    pub(crate) collation: Option<String>,
    pub(crate) is_deterministic: bool,
}

/// For each table, the unique index that tells rows apart by just these columns; empty: there is none.
pub(crate) async fn locate(
    conn: &mut PgConnection,
    keys: &[(&Table, Vec<&str>)],
) -> Result<Vec<Vec<KeyPart>>, sqlx::Error> {
    let parts: Vec<KeyPart> = sqlx::query_as(include_str!("key_index/locate.sql"))
        .bind(keys.iter().map(|(table, _)| relation(table)).collect::<Vec<_>>())
        .bind(keys.iter().map(|(_, key)| Json(key)).collect::<Vec<_>>())
        .fetch_all(conn)
        .await?;
    Ok(by_table(keys.len(), parts, |part| part.place))
}

/// Returns true if two values of a type that are the same to its `=` always have the same text, in a deterministic
/// collation. `own_type`: its name, where it is Postgres's own.
pub(crate) fn has_one_text(own_type: Option<&str>, is_enum: bool) -> bool {
    const ONE_TEXT: &[&str] = &[
        "int2",
        "int4",
        "int8",
        "oid",
        "xid8",
        "pg_lsn",
        "bool",
        "text",
        "varchar",
        "name",
        "char",
        "uuid",
        "bytea",
        "bit",
        "varbit",
        "timestamptz",
        "timestamp",
        "date",
        "time",
        "inet",
        "cidr",
        "macaddr",
        "macaddr8",
    ];
    is_enum || own_type.is_some_and(|name| ONE_TEXT.contains(&name))
}

/// Why the text of a type tells no rows apart, if it doesn't: it is another one for who writes, who tracks and who
/// exports.
pub(crate) fn unsteady_text(own_type: Option<&str>) -> Option<&'static str> {
    match own_type.map(|name| name.trim_start_matches('_'))? {
        "money" => Some("whose text depends on lc_monetary"),
        "regclass" | "regproc" | "regprocedure" | "regoper" | "regoperator" | "regtype" | "regrole"
        | "regnamespace" | "regconfig" | "regdictionary" | "regcollation" => {
            Some("whose text depends on a search_path and on names: oid has the number alone")
        }
        _ => None,
    }
}
