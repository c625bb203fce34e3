-- Moments: the database's snapshot, and when it was so. A transaction of the change log was committed before the first
-- moment that sees it. Written only while something is committed that the change log may have.
create table cdc_export.moments (
  at timestamptz not null,
  -- The transactions that this moment sees and the one before doesn't were committed after this time. Null: after the
  -- moment before.
  since timestamptz,
  snapshot pg_snapshot not null,
  next_xid xid8 not null, -- the first transaction that had not begun, as `snapshot` has it
  log_sequence bigint not null, -- the change log's latest sequence then
  open_xids xid8[] not null, -- the transactions under way that may have written to the change log
  primary key (next_xid, at)
);

-- The lane's latest job when an operator removed its consumer. A later job brings it back, and earlier ones don't count
-- for its state. Null: it was never removed.
alter table cdc_export.lanes add column removed_sequence bigint;
-- The number of the lane's last published export when its position was last removed, alone or with its consumer. What
-- was loaded before doesn't count any more. Null: it was never removed.
alter table cdc_export.lanes add column removed_number bigint;

-- The number of rows that a running export of changes expects. Null: they were not counted.
alter table {schema}.exports add column rows_expected bigint check (rows_expected >= 0);

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
    execute format('grant %s on cdc_export.moments to %s', rights.privileges, rights.role_name);
  end loop;
end $$;
