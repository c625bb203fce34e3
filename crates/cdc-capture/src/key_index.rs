//! The unique index that tells a table's rows apart, and which types' texts do.

pub(crate) const LOCATE: (&str, &str) = ("key_index/locate.sql", include_str!("key_index/locate.sql"));

/// Returns true if two values of a type that are the same to its `=` always have the same text, in a deterministic
/// collation. `own_type`: its name, where it is Postgres's own.
pub(crate) fn has_one_text(own_type: Option<&str>, is_enum: bool) -> bool {
    match own_type {
        Some(
            "int2" | "int4" | "int8" | "oid" | "xid8" | "pg_lsn" | "bool" | "text" | "varchar" | "name" | "char"
            | "uuid" | "bytea" | "bit" | "varbit" | "timestamptz" | "timestamp" | "date" | "time" | "inet" | "cidr"
            | "macaddr" | "macaddr8",
        ) => true,
        _ => is_enum,
    }
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
