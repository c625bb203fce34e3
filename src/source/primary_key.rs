//! A table's primary key, as a piece of SQL that several statements share.

/// The names of its columns, in the key's order, without those that its index only includes: an array of texts. Of the table that has
/// this oid.
macro_rules! primary_key {
    ($oid:literal) => {
        concat!(
            "array(
              select a.attname::text
              from pg_index x
              cross join lateral unnest(x.indkey) with ordinality as k (attnum, place)
              join pg_attribute a on a.attrelid = x.indrelid and a.attnum = k.attnum
              where x.indrelid = ",
            $oid,
            " and x.indisprimary and k.place <= x.indnkeyatts
              order by k.place)"
        )
    };
}
pub(crate) use primary_key;
