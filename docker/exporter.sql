-- The service's role: no superuser, and owner of its database alone. The database's container runs this when it makes its data.
-- In a volume whose service was a superuser still, once:
--   docker-compose exec -T db psql -U postgres -d cdc_export -f /docker-entrypoint-initdb.d/exporter.sql
create role exporter login password 'exporter';
alter database cdc_export owner to exporter;

-- What that superuser made in such a volume; in a new database there is nothing.
do $$
declare
  mine oid := current_user::regrole;
  given text;
begin
  for given in
    select format('alter schema %I owner to exporter', nspname) from pg_namespace
    where nspname = 'cdc_export' and nspowner = mine
    union all
    select format('alter table %s owner to exporter', c.oid::regclass)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('public', 'cdc_export') and c.relkind in ('r', 'p', 'v') and c.relowner = mine
    union all
    select format('alter routine %s owner to exporter', p.oid::regprocedure)
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'cdc_export' and p.proowner = mine
    union all
    select format('alter type %s owner to exporter', t.oid::regtype)
    from pg_type t join pg_namespace n on n.oid = t.typnamespace
    where n.nspname = 'cdc_export' and t.typtype in ('d', 'e') and t.typowner = mine
  loop
    execute given;
  end loop;
end
$$;
