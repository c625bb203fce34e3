-- The audit log.

create table cdc_export.audit_log (
  id bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  request_id text,
  key text, -- the key's prefix, schedule:NAME, amqp:NAME or cli:USER; null: a call that needed no key
  remote text, -- the address of the peer
  action text not null,
  consumer_id text,
  dataset text,
  job_id uuid,
  part integer, -- of a download
  outcome text not null, -- done, or the code of the refusal
  count bigint not null default 1 -- equal downloads or refusals within a minute
);
create index audit_log_at on cdc_export.audit_log (at);
create index audit_log_key on cdc_export.audit_log (coalesce(key, ''), at);

-- Writes the row of a change. A statement that changes something calls it for each row that it returns, so the row of
-- the log is in the same transaction and costs no round trip. The service's own changes have no origin and no row.
create function cdc_export.audit(origin jsonb, action text, consumer_id text, dataset text, job_id uuid) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  insert into cdc_export.audit_log (request_id, key, remote, action, consumer_id, dataset, job_id, outcome)
  select $1 ->> 'requestId', $1 ->> 'key', $1 ->> 'remote', $2, $3, $4, $5, 'done'
  where $1 is not null
$$;

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
    execute format('grant %s on cdc_export.audit_log to %s', rights.privileges, rights.role_name);
  end loop;
end $$;
