-- apply.trust.owners
-- Returns an object whose owner could run code when rows are written to a table, and isn't trusted.
-- $1 text[]: the roles of `trusted_roles.sql`
-- $2 text: the schema; `pg_temp` for the session's own
-- $3 text: the table, which may be missing
with recursive
  -- include trusted_roles.sql
  schema_of_it (oid) as (
    select oid from pg_namespace where nspname = $2 or $2 = 'pg_temp' and oid = pg_my_temp_schema()
  ),
  -- The table, its partitions and parents, and the tables whose rows its foreign keys' actions change.
  tables (oid) as (
    select c.oid from pg_class c join schema_of_it n on n.oid = c.relnamespace where c.relname = $3
    union
    select near.oid from tables t cross join lateral (
      select inhrelid from pg_inherits where inhparent = t.oid
      union all
      select inhparent from pg_inherits where inhrelid = t.oid
      union all
      select conrelid from pg_constraint
      where contype = 'f' and confrelid = t.oid and (confdeltype in ('c', 'n', 'd') or confupdtype in ('c', 'n', 'd'))
    ) as near (oid)
  ),
  -- Postgres keeps what belongs to a table or a type (triggers, constraints, defaults, indexes, rules), and what each
  -- of these uses. A function decides by itself what it calls, so the search ends there.
  used (classid, objid) as (
    select 'pg_namespace'::regclass::oid, oid from schema_of_it
    union all
    select 'pg_class'::regclass::oid, oid from tables
    union
    select next.classid, next.objid from used u cross join lateral (
      select d.classid, d.objid from pg_depend d
      where d.refclassid = u.classid and d.refobjid = u.objid and d.deptype in ('a', 'i', 'P', 'S')
      union all
      select d.refclassid, d.refobjid from pg_depend d
      where d.classid = u.classid and d.objid = u.objid and u.classid <> 'pg_proc'::regclass
        and (d.refclassid in ('pg_proc'::regclass, 'pg_type'::regclass, 'pg_operator'::regclass)
          or d.refclassid = 'pg_namespace'::regclass and u.classid in ('pg_class'::regclass, 'pg_type'::regclass))
    ) as next (classid, objid)
  ),
  owned (classid, objid, owner) as (
    select 'pg_class'::regclass::oid, c.oid, c.relowner from tables t join pg_class c on c.oid = t.oid
    union all
    select u.classid, u.objid, coalesce(n.nspowner, y.typowner, p.proowner, o.oprowner) from used u
    left join pg_namespace n on u.classid = 'pg_namespace'::regclass and n.oid = u.objid
    left join pg_type y on u.classid = 'pg_type'::regclass and y.oid = u.objid
    left join pg_proc p on u.classid = 'pg_proc'::regclass and p.oid = u.objid
    left join pg_operator o on u.classid = 'pg_operator'::regclass and o.oid = u.objid
  )
select object.type = 'table' as is_table,
  case object.type when 'table' then object.identity else object.type || ' ' || object.identity end as name,
  case pg_get_userbyid(owned.owner) when 'pg_database_owner' then pg_get_userbyid(d.datdba)
    else pg_get_userbyid(owned.owner) end::text as owner,
  current_user::text as role
from owned
join pg_database d on d.datname = current_database()
cross join lateral pg_identify_object(owned.classid, owned.objid, 0) as object
where owned.owner not in (select oid from trusted)
order by array_position(
    array['pg_class', 'pg_namespace', 'pg_type', 'pg_proc', 'pg_operator']::regclass[], owned.classid::regclass), name
limit 1
