//! What of the guard compares how a table was captured: its triggers and their functions, its files, and what could be written past them.
//!
//! Pieces of SQL that speak of what `guard`'s do, and of `capture`, what there is of the capture.

/// What shows that rows were written past the triggers while columns were otherwise: an object, of which each member is touched by
/// itself. Of a plain table by the numbers of its columns: it was a child or a partition for a while, and was written through its parent,
/// and both touch the columns that it shares with that. Of a partitioned one by the oids of its partitions: the name of its key was
/// another column's, and renaming touches both in all of them.
///
/// Each is an array: the touch, and what is said of the column now, which explains a touch of any other kind. Nothing explains one of
/// the key.
macro_rules! touches {
    () => {
        "(select jsonb_object_agg(touched.what, touched.how)
          from (
            select a.attnum::text as what,
              case when a.attname::text = any (capture.logged_key) then jsonb_build_array(a.xmin::text)
                else jsonb_build_array(a.xmin::text, hashtext(format('%s %s %s %s %s %s %s %s %s %s %s', a.attname, a.atttypid, a.atttypmod,
                  a.attnotnull, a.attidentity, a.atthasmissing, a.attstattarget, a.attstorage, a.attacl, a.attoptions, d.oid) collate \"C\"))
              end as how
            from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
            where t.relkind = 'r' and a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
            union all
            select parts.oid, jsonb_build_array(string_agg(a.xmin::text, ',' order by a.attnum))
            from jsonb_object_keys(capture.relations) parts (oid)
            join pg_attribute a on a.attrelid = parts.oid::oid and a.attname = any (capture.logged_key::name[])
            -- Being attached under another table touches the root's alone, and is seen otherwise.
            where t.relkind = 'p' and parts.oid <> t.oid::text
            group by parts.oid) touched)"
    };
}
pub(crate) use touches;

/// Whether anything was touched since the position was saved, and nothing is said otherwise that would explain it. What one of the
/// two lacks came or went.
macro_rules! touched {
    () => {
        "(w.guard_state -> 'touches' <> here.guard_state -> 'touches' and exists (
            select from jsonb_each(w.guard_state -> 'touches') was join jsonb_each(here.guard_state -> 'touches') now using (key)
            where was.value -> 0 <> now.value -> 0 and was.value -> 1 is not distinct from now.value -> 1))"
    };
}
pub(crate) use touched;

/// Of a stamp that a position has saved, the one that took its place, if we put one there.
macro_rules! renewed {
    ($stamp:literal) => {
        concat!(
            "coalesce((select k.renewed ->> (",
            $stamp,
            ") from cdc_export.tracked k where k.renewed ? (",
            $stamp,
            ") limit 1), ",
            $stamp,
            ")"
        )
    };
}
pub(crate) use renewed;

/// Whether a trigger or a function was dropped, disabled or replaced since the position was saved, or was already then. Of a partition
/// that came since, nothing is saved.
macro_rules! triggers_changed {
    () => {
        concat!(
            "case
               when w.guard_state -> 'captured' = 'false' then true
               when w.guard_state ->> 'functions' <> here.guard_state ->> 'functions' and ",
            $crate::source::guard::triggers::renewed!("w.guard_state ->> 'functions'"),
            " <> here.guard_state ->> 'functions' then true
               else w.guard_state -> 'relations' <> here.guard_state -> 'relations' and exists (
                 select from jsonb_each(w.guard_state -> 'relations') was
                 where was.value ->> 0 is distinct from here.guard_state -> 'relations' -> was.key ->> 0 and ",
            $crate::source::guard::triggers::renewed!("was.value ->> 0"),
            " is distinct from here.guard_state -> 'relations' -> was.key ->> 0)
             end"
        )
    };
}
pub(crate) use triggers_changed;

/// Whether the table or a partition of it was truncated since the position was saved: the log has it, or its file is another one and
/// there was no trigger all the time that would have logged it; or since the last delta or full export, whose position remembers the
/// word, while the files it knows are those of now.
macro_rules! truncated {
    () => {
        "exists (
           select from cdc_export.change_log l
           where l.table_oid = t.oid and l.operation = 'T' and l.xid >= pg_snapshot_xmin(w.deletions_snapshot)
             and not pg_visible_in_snapshot(l.xid, w.deletions_snapshot))
         or w.guard_state -> 'truncated' = 'true'
         or w.guard_state -> 'relations' <> here.guard_state -> 'relations' and exists (
           select from jsonb_each(w.guard_state -> 'relations') was cross join lateral (select here.guard_state -> 'relations' -> was.key as value) now
           where was.value ->> 2 <> now.value ->> 2 and (was.value ->> 1 <> now.value ->> 1) is distinct from false)"
    };
}
pub(crate) use truncated;
