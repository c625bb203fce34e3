-- postgres.migrate.rights
-- Returns the rights of the session's role on the service's tables, and the grants that it lacks.
-- $1 text: the schema of the tables; null if the search path has none
with here as (
  select current_user::text as role, $1::text as place
)
select role, s.oid is not null as has_schema, m.oid is not null as has_migrations,
  case when not pg_has_role(m.relowner, 'usage') then pg_get_userbyid(m.relowner)::text end as owner,
  coalesce(has_schema_privilege(s.oid, 'usage'), true)
    and coalesce(has_table_privilege(m.oid, 'select'), true)
    and coalesce(has_table_privilege(o.oid, 'select'), true) as may_read,
  format('GRANT USAGE ON SCHEMA cdc_export, %2$I TO %1$I; '
    'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA cdc_export TO %1$I; '
    'GRANT USAGE ON ALL SEQUENCES IN SCHEMA cdc_export TO %1$I; '
    'GRANT SELECT, INSERT, UPDATE, DELETE ON %3$s TO %1$I', role,
    coalesce(made.place, here.place), coalesce(made.tables, '')) as to_use,
  concat_ws('; ', format('GRANT USAGE, CREATE ON SCHEMA cdc_export TO %1$I; '
    'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA cdc_export TO %1$I', role),
    case when not has_schema_privilege(made.place::text, 'usage')
      then format('GRANT USAGE ON SCHEMA %I TO %I', made.place, role) end) as to_track,
  concat_ws('; ',
    case when s.oid is null and not has_database_privilege(current_database(), 'create')
      then format('GRANT CREATE ON DATABASE %I TO %I', current_database(), role) end,
    -- Those of the two rights that are missing; null if neither is.
    'GRANT ' || nullif(concat_ws(', ', case when not has_schema_privilege(s.oid, 'create') then 'CREATE' end,
      case when not has_schema_privilege(s.oid, 'usage') then 'USAGE' end), '')
      || format(' ON SCHEMA cdc_export TO %I', role),
    'GRANT ' || nullif(concat_ws(', ', case when not has_schema_privilege(p.oid, 'create') then 'CREATE' end,
      case when not has_schema_privilege(p.oid, 'usage') then 'USAGE' end), '')
      || format(' ON SCHEMA %I TO %I', here.place, role)) as to_create,
  (select pg_get_userbyid(d.datdba)::text from pg_database d
   where d.datname = current_database() and not pg_has_role(d.datdba, 'usage')) as database_owner
from here
left join pg_namespace p on p.nspname = here.place
left join pg_namespace s on s.nspname = 'cdc_export'
left join pg_class m on m.relnamespace = s.oid and m.relname = 'migrations'
left join pg_class o on o.relnamespace = s.oid and o.relname = 'owned'
-- The schema in which the service made its tables, and their names.
left join lateral (
  select n.nspname as place, (
    select string_agg(format('%I.%I', n.nspname, t.relname), ', ' order by t.relname)
    from pg_class t
    where t.relnamespace = n.oid and t.relname in ('watermarks', 'users') and t.relkind in ('r', 'p'))
    as tables
  from pg_class e
  join pg_namespace n on n.oid = e.relnamespace
  where e.relname = 'watermarks' and e.relkind = 'r' and e.relowner = m.relowner
  order by n.nspname = here.place desc
  limit 1) made on true
