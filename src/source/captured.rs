//! The piece of SQL that says whether a table's changes are captured, shared by every statement about it.
//!
//! A trigger's kind is the letter that ends its function's name ([`TriggerKind`](crate::source::trigger::TriggerKind)) and its
//! `tgenabled`: `O` fires where somebody writes here, `R` where rows are replicated, `A` always.

/// As a lateral subquery of a table `t` (of `pg_class`) in the schema `n`: one row, whatever there is.
///
/// - `captured`: every trigger that it and its partitions need is there, fires for everybody, and logs changes of this very table.
/// - `mute_role`: the role that the functions run as, if it may not write to the log: writes to the table then fail.
/// - `logs_every_truncate`: no partition lacks the trigger for a TRUNCATE, which `track` puts on those that came since.
/// - `set`: what the names of the functions that they call begin with.
/// - `logged_key`: what they log; what they shall log, where there are none; null: nobody let the table be exported.
/// - `relations`: by the oids of the table and its partitions an array of three: the stamps of the triggers that log rows, that of
///   the one that logs a TRUNCATE, and the number of the file, which a TRUNCATE changes. A stamp is an oid and an xmin: a catalog's row
///   that was changed, or made anew, has another one: DISABLE and ENABLE leave a trigger's oid and change its `xmin`.
/// - `functions`: a stamp of the functions.
///
/// A trigger is told by the function that it calls, never by its name or by how many there are: a partition has triggers of its own
/// from when it was a table by itself. And whose changes a function logs, by which key, it says itself in its first line: a name in a
/// list may be another table's by now. What there is of partitions is read as the statement's snapshot has it, which Postgres's own
/// functions for that don't: one that came since then has rows that the snapshot can't see.
macro_rules! capture {
    () => {
        concat!(
            "(with recursive tree (oid) as (
            select t.oid
            union all
            select i.inhrelid
            from tree join pg_inherits i on i.inhparent = tree.oid
            -- One that is being detached is read no more. Postgres knows of that since 14.
            where t.relkind = 'p' and to_jsonb(i) ->> 'inhdetachpending' is distinct from 'true'),
          relations as materialized (
            select c.oid, c.relfilenode, c.relpersistence = 'p' and c.relhastriggers and c.relkind in ('r', 'p') as is_safe
            from tree join pg_class c on c.oid = tree.oid),
          functions as materialized (
            select p.oid, p.xmin, left(p.proname::text, -1) as set, right(p.proname::text, 1) as kind, head[2]::jsonb as key
            from (select distinct x.tgfoid from pg_trigger x where x.tgrelid = t.oid) called
            join pg_proc p on p.oid = called.tgfoid
            cross join lateral regexp_match(split_part(p.prosrc, chr(10), 2), '^-- cdc-export \\d+ (\\d+) (\\[.*\\])$') head
            where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\\_%'
              and head[1]::oid = t.oid
              -- One without settings of its own was made for a key whose type was another one.
              and (p.proconfig is not null or ",
            $crate::source::captured::is_plain_key!("t.oid", "head[2]::jsonb"),
            ")),
          triggers as materialized (
            select x.tgrelid, format('%s %s', x.oid, x.xmin) as stamp, f.set, f.kind || x.tgenabled::text as kind
            from relations r join pg_trigger x on x.tgrelid = r.oid join functions f on f.oid = x.tgfoid
            where x.tgqual is null and x.tgattr::text = ''
              and x.tgtype = case f.kind when 'i' then 4 when 'u' then 16 when 'd' then 8 when 's' then 29 when 't' then 32 when 'r' then 29 end),
          sets as (
            select g.set,
              case t.relkind
                -- A TRUNCATE of a partition without a trigger for it is told by its file.
                when 'p' then count(distinct g.tgrelid) filter (where g.kind = 'rA') = (select count(*) from relations)
                else array_agg(g.kind) @> '{iO,uO,dO,sR,tA}'
              end as is_whole,
              t.relkind <> 'p' or count(distinct g.tgrelid) filter (where g.kind = 'tA') = (select count(*) from relations) as logs_every_truncate
            from triggers g group by g.set),
          its as materialized (
            select s.set, s.is_whole, s.logs_every_truncate from sets s
            order by s.is_whole desc, s.logs_every_truncate desc, s.set limit 1)
          select found.captured, found.captured and its.logs_every_truncate as logs_every_truncate, its.set,
            case when listed.is_there then coalesce(
              (select array(select jsonb_array_elements_text(f.key)) from functions f where f.set = its.set and f.kind <> 't' limit 1),
              listed.key) end as logged_key,
            (select jsonb_object_agg(r.oid::text, jsonb_build_array(g.rows, g.truncates, r.relfilenode))
             from relations r
             left join (
               select x.tgrelid, md5(string_agg(x.stamp, ',' order by x.stamp) filter (where x.kind not like 't%')) as rows,
                 string_agg(x.stamp, ',' order by x.stamp) filter (where x.kind = 'tA') as truncates
               from triggers x join its on its.set = x.set
               group by x.tgrelid) g on g.tgrelid = r.oid) as relations,
            (select md5(string_agg(format('%s %s', f.oid, f.xmin), ',' order by f.oid)) from functions f where f.set = its.set) as functions,
            (select quote_ident(pg_get_userbyid(p.proowner)) from functions f join pg_proc p on p.oid = f.oid
             where f.set = its.set and not (has_schema_privilege(p.proowner, 'cdc_export', 'usage')
               and has_table_privilege(p.proowner, 'cdc_export.change_log', 'insert'))
             limit 1) as mute_role
          from (select) one
          left join its on true
          left join lateral (
            select true as is_there, k.key from cdc_export.tracked k where k.schema_name = n.nspname and k.table_name = t.relname) listed
            on true
          cross join lateral (
            select coalesce(its.is_whole, false) and t.relkind in ('r', 'p') and not t.relispartition
              and (select bool_and(r.is_safe) from relations r)
              and (select l.relpersistence = 'p' from pg_class l where l.oid = to_regclass('cdc_export.change_log'))
              -- Statement triggers don't see what comes through a parent, nor what a child has.
              and (t.relkind = 'p'
                or not exists (select from pg_inherits i where i.inhparent = t.oid)
                  and not exists (select from pg_inherits i where i.inhrelid = t.oid)) as captured) found
          offset 0)"
        )
    };
}
pub(crate) use capture;

/// Whether the texts of a key, a JSON array of names, of a table show no setting of a session: of types of which that is known.
macro_rules! is_plain_key {
    ($table:literal, $key:literal) => {
        concat!(
            "not exists (
               select from jsonb_array_elements_text(",
            $key,
            ") part (name)
               left join pg_attribute a on a.attrelid = ",
            $table,
            " and a.attname = part.name and not a.attisdropped
               where a.atttypid is null or a.atttypid <> all ('{int2,int4,int8,numeric,oid,uuid,text,varchar,bpchar,bool}'::regtype[]))"
        )
    };
}
pub(crate) use is_plain_key;
