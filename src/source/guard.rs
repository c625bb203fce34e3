//! The guard of continuity: whether what changed since a consumer's position can be told exactly, and if not, why.
//!
//! Three pieces of SQL that every statement about a position shares: `guard/here.sql`, `guard/witness.sql`, `guard/continuity.sql`. They
//! speak of `t`, the table's row of `pg_class`, `n`, its schema's, `capture` (`source::captured`), `c`, the row of `pg_control_system()`,
//! `wanted`, what the catalog says of the table and what its columns are, and `w`, the consumer's row of `watermarks`, all null where it
//! has none. `offset 0` keeps Postgres from putting a piece's text wherever a statement speaks of one of its columns: planned so, it took
//! six times as long as it runs.
//!
//! Here is what a position remembers of its table's columns, so that values which changed without a trigger's knowing are noticed: a column
//! that has its name from another one, a table that was rewritten with the column as it is now, a type that says otherwise. Members of
//! `watermarks.guard_state`, each an object or an array. Numbers are those of `pg_attribute`, which stay when a column is renamed and never
//! come again.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::PgConnection;

use crate::dataset::Table;
use crate::source::quote::relation;
use crate::watermark::GuardState;

/// A column that is in a dataset's files, or decides what is in them.
pub(crate) struct RememberedColumn<'a> {
    pub(crate) name: &'a str,
    pub(crate) number: i16,
    /// The `xmin` of its row of `pg_attribute`.
    pub(crate) version: &'a str,
    /// True if its values are in the files.
    pub(crate) is_sent: bool,
}

/// What a position remembers of `columns` of a table that has ever had `width` columns, and whose rows' times are in the column
/// `time`.
pub(crate) fn remembered<'a>(
    columns: impl Iterator<Item = RememberedColumn<'a>>,
    parts: &BTreeMap<String, String>,
    width: i16,
    time: Option<i16>,
) -> GuardState {
    let (mut numbers, mut versions, mut sent) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for column in columns {
        let number = column.number.to_string();
        numbers.insert(column.name, number.clone());
        versions.insert(number.clone(), column.version);
        if column.is_sent {
            sent.push(number);
        }
    }
    let mut memory = GuardState::default();
    memory.set("numbers", json!(numbers));
    memory.set("versions", json!(versions));
    memory.set("parts", json!(parts));
    memory.set("sent", sent);
    memory.set("width", width);
    memory.set("time", time.unwrap_or(0));
    memory
}

/// What these columns' values are made of by somebody, by its name, each with a text that is another one when it changes: labels and
/// attributes of types, and what computes a value that is read.
pub(crate) async fn parts(
    conn: &mut PgConnection,
    table: &Table,
    numbers: &[i16],
) -> Result<BTreeMap<String, String>, sqlx::Error> {
    // Postgres's own types don't change.
    if numbers.is_empty() {
        return Ok(BTreeMap::new());
    }
    let parts: Vec<(String, String)> = sqlx::query_as(
        "-- source.guard.parts
        with recursive types (oid) as (
          select a.atttypid from pg_attribute a where a.attrelid = to_regclass($1) and a.attnum = any ($2)
          union
          -- Of a domain its base, of an array its elements, of a range its bounds, of a row its attributes.
          select d.refobjid
          from types p
          join pg_type t on t.oid = p.oid
          cross join lateral (
            select d.refobjid from pg_depend d
            where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.refclassid = 'pg_type'::regclass
            union all
            select d.refobjid from pg_depend d
            where d.classid = 'pg_class'::regclass and d.objid = t.typrelid and d.refclassid = 'pg_type'::regclass) d)
        -- A label comes without a change of the others. One that has its name back had another one meanwhile.
        select 'label ' || e.oid, e.xmin::text from types join pg_enum e on e.enumtypid = types.oid
        union all
        select 'row ' || t.oid, md5(string_agg(format('%s %s %s %s', f.attnum, f.attname, f.atttypid, f.atttypmod), E'
' order by f.attnum))
        from types
        join pg_type t on t.oid = types.oid
        join pg_attribute f on f.attrelid = t.typrelid and f.attnum > 0 and not f.attisdropped
        group by t.oid
        union all
        -- The expression of a generated column. A partition may have one of its own.
        select format('column %s %s', a.attrelid, a.attnum), md5(d.adbin::text)
        from pg_attribute r
        cross join lateral (select r.attrelid union select relid from pg_partition_tree(r.attrelid)) its (oid)
        join pg_attribute a on a.attrelid = its.oid and a.attname = r.attname
        join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where r.attrelid = to_regclass($1) and r.attnum = any ($2) and r.attgenerated <> ''",
    )
    .bind(relation(table))
    .bind(numbers)
    .fetch_all(conn)
    .await?;
    Ok(parts.into_iter().collect())
}
