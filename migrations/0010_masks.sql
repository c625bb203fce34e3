-- The secret of masks. The database has its fingerprint alone: a process with another secret doesn't start.
create table cdc_export.mask_secret (
  is_only boolean primary key default true check (is_only), -- there is one row at most
  fingerprint text not null,
  accepted_at timestamptz not null default clock_timestamp()
);

-- The columns whose values are masked in the last export of each dataset, by their numbers, which stay when a column is
-- renamed. A column that is here is never exported under another name without its mask.
create table cdc_export.masked_columns (
  dataset text collate "C",
  table_oid oid,
  number smallint,
  name text not null,
  rule text not null,
  primary key (dataset, table_oid, number)
);

-- Whoever may use the service's tables may use the new ones, too.
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
    execute format('grant %s on cdc_export.mask_secret, cdc_export.masked_columns to %s', rights.privileges, rights.role_name);
  end loop;
end $$;
