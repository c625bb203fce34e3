-- What is recorded of a completed job's files, one row for each part. A job has one file so far, which is part 1.
--
-- While processes of the version before run beside this one: they write a file to `exports` alone, and find it there alone. This version
-- writes it to both tables, so that either may name, serve and remove it, and reads from `exports` what has no row here. What the version
-- before changes of a job that has a row here, its file's name or that the file was lost, a trigger repeats here.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

create table cdc_export.files (
  job uuid not null references exports (id) on delete cascade,
  part integer not null check (part > 0),
  name text collate "C" not null, -- the final one
  staged_name text collate "C" not null,
  place jsonb not null, -- where its destination has it: {"folder": {"inode": "...", "modifiedNs": "..."}}, numbers as texts
  bytes bigint not null check (bytes >= 0),
  rows bigint not null check (rows >= 0),
  sha256 text collate "C" not null,
  primary key (job, part)
);

-- Who may use the service's tables may use this one too: no GRANT has to be repeated for it.
do $$
declare
  allowed record;
begin
  for allowed in
    select g.privilege_type, case when g.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end as grantee
    from pg_class c cross join lateral aclexplode(c.relacl) g
    where c.oid = 'cdc_export.lanes'::regclass and g.grantee <> c.relowner
      and g.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
  loop
    execute format('grant %s on cdc_export.files to %s', allowed.privilege_type, allowed.grantee);
  end loop;
end $$;

create function cdc_export.exports_file_follows() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if new.status = 'completed' then
    update cdc_export.files set name = new.output_filename where job = new.id and part = 1;
  else
    delete from cdc_export.files where job = new.id;
  end if;
  return null;
end $$;

create trigger exports_file_follows after update of status, output_filename on exports
  for each row when (old.status = 'completed')
  execute function cdc_export.exports_file_follows();

-- A file that isn't in a folder has neither inode nor time.
alter table exports drop constraint completed_has_a_file;
alter table exports
  add constraint completed_has_a_file check (
    (status = 'completed') = (staged_name is not null and sha256 is not null and store_id is not null)),
  add constraint a_folder_has_inode_and_time check (
    (file_inode is null) = (file_modified_ns is null) and (file_inode is null or status = 'completed'));
