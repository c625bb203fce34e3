-- The first CTEs of a statement. `input` has the relations of $1, text[]. `beneath` has these, their partitions and
-- what their views read, each with the relation that leads to it as `root`.
with recursive input (oid) as materialized (
  select to_regclass(parameter.name)::oid from unnest($1) parameter (name)
), beneath (root, oid) as (
  select input.oid, input.oid from input
  union
  select b.root, next.oid
  from beneath b
  cross join lateral (
    select d.refobjid as oid
    from pg_rewrite r
    join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass
    join pg_class c on c.oid = r.ev_class
    -- LOCK of a view locks no other kinds.
    join pg_class read on read.oid = d.refobjid and read.relkind in ('r', 'p', 'v')
    where r.ev_class = b.oid and c.relkind = 'v'
    union all
    select i.inhrelid from pg_inherits i where i.inhparent = b.oid) next)
