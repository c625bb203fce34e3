-- The datasets that processes have, and their tables. A name that has exports or keys never passes to another table
-- by a pattern.
create table cdc_export.datasets (
  name text collate "C" primary key,
  schema_name text not null,
  table_name text not null,
  seen_at timestamptz not null -- when a process that has it last recorded that, to within three minutes
);

-- Whoever may use the service's tables may use the new one, too.
do $$
declare
  rights record;
begin
  for rights in
    select case grantee when 0 then 'public' else grantee::regrole::text end as role_name,
      string_agg(privilege_type, ', ') as privileges
    from pg_catalog.pg_class
    cross join lateral pg_catalog.aclexplode(relacl)
    where oid = 'cdc_export.keys'::regclass and grantee <> relowner
      and privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    group by grantee
  loop
    execute format('grant %s on cdc_export.datasets to %s', rights.privileges, rights.role_name);
  end loop;
end $$;
