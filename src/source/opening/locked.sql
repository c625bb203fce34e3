-- source.opening.locked
-- Returns the name of a table beneath a view that another session keeps readers out of, or waits for.
-- $1 text: the view
with recursive beneath (oid) as (
  select to_regclass($1)::oid
  union
  select next.oid
  from beneath b
  cross join lateral (
    select d.refobjid as oid
    from pg_rewrite r
    join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass
    join pg_class c on c.oid = r.ev_class
    where r.ev_class = b.oid and c.relkind = 'v'
    union all
    select i.inhrelid from pg_inherits i where i.inhparent = b.oid) next)
select format('%s.%s', n.nspname, c.relname)
from beneath b
join pg_class c on c.oid = b.oid
join pg_namespace n on n.oid = c.relnamespace
join pg_locks l on l.locktype = 'relation' and l.relation = c.oid
  and l.database = (select d.oid from pg_database d where d.datname = current_database())
where l.mode = 'AccessExclusiveLock' and c.relkind in ('r', 'p')
order by l.granted desc
limit 1
