-- Whether triggers capture the changes of each table of `target`, and by which key.
--
-- A list of CTEs, to be included after `target (oid, relkind, relispartition, relname, nspname)`. The last CTE,
-- `capture`, has one row for each table of `target`; `source::captured` describes its columns. `root` is the oid of
-- that table.

-- The table and its partitions, as the statement's snapshot has them. The functions of Postgres for that read the
-- newest state, and a partition that was attached after the snapshot has rows that the snapshot can't see.
, tree (root, oid) as (
  select target.oid, target.oid from target
  union all
  select tree.root, i.inhrelid
  from tree
  join target on target.oid = tree.root
  join pg_inherits i on i.inhparent = tree.oid
  -- A partition that is being detached is no longer read. Postgres has this column since 14.
  where target.relkind = 'p' and to_jsonb(i) ->> 'inhdetachpending' is distinct from 'true'),

relations as materialized (
  select tree.root, c.oid, c.relfilenode,
    c.relpersistence = 'p' and c.relhastriggers and c.relkind in ('r', 'p') as is_safe
  from tree
  join pg_class c on c.oid = tree.oid),

-- The functions of the service that triggers of the table call and that log changes of this very table. The second line
-- of a function has the oid of its table and the key.
functions as materialized (
  select target.oid as root, p.oid, p.xmin, left(p.proname::text, -1) as set, right(p.proname::text, 1) as kind,
    head.key
  from target
  cross join lateral (select distinct x.tgfoid from pg_trigger x where x.tgrelid = target.oid) called
  -- `offset 0`, so that each trigger looks for its function: the planner may expect few functions in the schema, and
  -- would read all of them for each table.
  cross join lateral (
    select p.oid, p.xmin, p.pronamespace, p.proname, p.prosrc, p.proconfig
    from pg_proc p
    where p.oid = called.tgfoid
    offset 0) p
  -- A match without captured texts takes Postgres a tenth of the time of one with them.
  cross join lateral (
    select split_part(line, ' ', 4)::oid as root, substr(line, strpos(line, '['))::jsonb as key
    from split_part(p.prosrc, chr(10), 2) line
    where line ~ '^-- cdc-export \d+ \d+ \[.*\]$'
    offset 0) head
  where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\_%'
    and head.root = target.oid
    -- A function without settings needs a key whose text depends on no setting of the session, as in
    -- `is_plain_key.sql`. Otherwise it was made when the key had another type.
    and (p.proconfig is not null or not exists (
      select from jsonb_array_elements_text(head.key) part (name)
      left join pg_attribute a on a.attrelid = target.oid and a.attname = part.name and not a.attisdropped
      where a.atttypid is null
        or a.atttypid <> all ('{int2,int4,int8,numeric,oid,uuid,text,varchar,bpchar,bool,inet,cidr}'::regtype[])))),

-- The triggers that call these functions, on the table and on its partitions. `kind` is the function's letter and
-- `tgenabled`. A stamp is an oid and an xmin: it changes when the trigger is made anew, disabled or enabled.
triggers as materialized (
  select r.root, x.tgrelid, format('%s %s', x.oid, x.xmin) as stamp, f.set, f.kind || x.tgenabled::text as kind
  from relations r
  join pg_trigger x on x.tgrelid = r.oid
  join functions f on f.oid = x.tgfoid and f.root = r.root
  where x.tgqual is null and x.tgattr::text = ''
    and x.tgtype = case f.kind
      when 'i' then 4 when 'u' then 16 when 'd' then 8 when 's' then 29 when 't' then 32 when 'r' then 29 end),

-- The triggers by the set of functions that they call. A set that is whole sees every change of a row.
sets as (
  select g.root, g.set,
    case target.relkind
      -- A TRUNCATE of a partition without a trigger for it is recognized by the partition's file.
      when 'p' then count(distinct g.tgrelid) filter (where g.kind = 'rA')
        = (select count(*) from relations r where r.root = g.root)
      else array_agg(g.kind) @> '{iO,uO,dO,sR,tA}'
    end as is_whole,
    target.relkind <> 'p' or count(distinct g.tgrelid) filter (where g.kind = 'tA')
      = (select count(*) from relations r where r.root = g.root) as logs_every_truncate
  from triggers g
  join target on target.oid = g.root
  group by g.root, g.set, target.relkind),

-- The set that counts, if a table has several.
best_set as materialized (
  select distinct on (s.root) s.root, s.set, s.is_whole, s.logs_every_truncate
  from sets s
  order by s.root, s.is_whole desc, s.logs_every_truncate desc, s.set),

-- Row security, rules, triggers and constraints on the log may fail the triggers' writes, or drop the written rows.
log as materialized (
  -- Counts, since the planner may read a whole catalog for an `exists`. The triggers are those that an INSERT calls.
  select l.relpersistence = 'p' as is_safe,
    l.relrowsecurity
    or (select count(*) from pg_rewrite r where r.ev_class = l.oid) > 0
    or (select count(*) from pg_constraint c where c.conrelid = l.oid and c.contype <> 'n') > 0
    or (select count(*) from pg_trigger x
        where x.tgrelid = l.oid and not x.tgisinternal and x.tgtype & 4 <> 0) > 0 as is_altered
  from pg_class l
  where l.oid = to_regclass('cdc_export.change_log')),

capture as materialized (
  select target.oid as root, coalesce((select log.is_altered from log), false) as is_log_altered,
    found.captured, found.captured and best_set.logs_every_truncate as logs_every_truncate,
    best_set.set,
    case when listed.is_there then coalesce(
      (select array(select jsonb_array_elements_text(f.key))
       from functions f
       where f.root = target.oid and f.set = best_set.set and f.kind <> 't' limit 1),
      listed.key) end as logged_key,
    (select jsonb_object_agg(r.oid::text, jsonb_build_array(g.rows, g.truncates, r.relfilenode))
     from relations r
     left join (
       select x.tgrelid,
         md5(string_agg(x.stamp, ',' order by x.stamp) filter (where x.kind not like 't%')) as rows,
         string_agg(x.stamp, ',' order by x.stamp) filter (where x.kind = 'tA') as truncates
       from triggers x
       where x.root = target.oid and x.set = best_set.set
       group by x.tgrelid) g on g.tgrelid = r.oid
     where r.root = target.oid) as relations,
    (select md5(string_agg(format('%s %s', f.oid, f.xmin), ',' order by f.oid))
     from functions f
     where f.root = target.oid and f.set = best_set.set) as functions,
    (select quote_ident(pg_get_userbyid(p.proowner))
     from functions f
     join pg_proc p on p.oid = f.oid
     where f.root = target.oid and f.set = best_set.set
       and not (has_schema_privilege(p.proowner, 'cdc_export', 'usage')
         and has_table_privilege(p.proowner, 'cdc_export.change_log', 'insert'))
     limit 1) as mute_role
  from target
  left join best_set on best_set.root = target.oid
  left join lateral (
    select true as is_there, k.key
    from cdc_export.tracked k
    -- By the collation of the index: a name has another one.
    where k.schema_name = target.nspname::text collate "default"
      and k.table_name = target.relname::text collate "default") listed on true
  cross join lateral (
    select coalesce(best_set.is_whole, false) and target.relkind in ('r', 'p') and not target.relispartition
      and (select bool_and(r.is_safe) from relations r where r.root = target.oid)
      and (select log.is_safe and not log.is_altered from log)
      -- Statement triggers see neither writes through a parent nor the rows of a child.
      and (target.relkind = 'p'
        or not exists (select from pg_inherits i where i.inhparent = target.oid)
          and not exists (select from pg_inherits i where i.inhrelid = target.oid)) as captured) found)
