-- apply.search_path.closed_schemas
-- Returns those of the schemas in which nobody who isn't trusted owns anything that a statement can name, or may create
-- it, in their order.
-- $1 text[]: the roles of `trusted_roles.sql`
-- $2 text[]: the schemas
with recursive
  -- include trusted_roles.sql
  open (oid) as (
    select n.oid from pg_namespace n
    cross join lateral aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) as acl
    where acl.privilege_type = 'CREATE' and acl.grantee not in (select oid from trusted)
    union
    select oid from pg_namespace where nspowner not in (select oid from trusted)
    union
    select pronamespace from pg_proc where proowner not in (select oid from trusted)
    union
    select oprnamespace from pg_operator where oprowner not in (select oid from trusted)
    union
    select relnamespace from pg_class where relowner not in (select oid from trusted)
    union
    select typnamespace from pg_type where typowner not in (select oid from trusted)
    union
    select collnamespace from pg_collation where collowner not in (select oid from trusted)
    union
    select connamespace from pg_conversion where conowner not in (select oid from trusted)
    union
    select cfgnamespace from pg_ts_config where cfgowner not in (select oid from trusted)
    union
    select dictnamespace from pg_ts_dict where dictowner not in (select oid from trusted)
  )
select n.nspname::text
from unnest($2::text[]) with ordinality as path (name, place)
join pg_namespace n on n.nspname = path.name
where n.oid not in (select oid from open)
order by path.place
