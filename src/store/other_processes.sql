-- store.other_processes
-- Returns the number of processes whose sessions say that their claims fail, true if no process is there that has
-- looked for jobs in the last minute, true if the files of a committed export have no names after a minute, true if
-- commits wait for a synchronous standby that is not there, and the rights on the service's tables that the role lacks,
-- of those that the start asks for.
-- $1 text: the name of such a session of this process
select (
    select count(*) from pg_stat_activity a
    where a.datname = current_database() and a.application_name ~ '^cdc-export [0-9a-f]{8} failing$'
      and a.application_name <> $1
      -- Any role may give its sessions such names.
      and has_table_privilege(a.usesysid, 'cdc_export.destinations', 'update')) as failing,
  not exists (
    select from cdc_export.process_sessions session
    where session.used_at > clock_timestamp() - interval '1 minute') as are_none,
  exists (
    select from cdc_export.jobs j
    join cdc_export.exports e on e.job = j.id
    where j.status = 'committed' and e.status = 'completed' and e.published_at is null
      and e.finished_at < clock_timestamp() - interval '1 minute') as have_unpublished,
  current_setting('synchronous_standby_names') <> '' and current_setting('synchronous_commit') <> 'local'
    and (not exists (select from pg_stat_replication)
      or exists (
        select from pg_stat_activity a
        where a.wait_event = 'SyncRep' and a.application_name like 'cdc-export %'
          and a.state_change < clock_timestamp() - interval '5 seconds')) as awaits_standby,
  (select string_agg(format('%s on %s', required.name, t.oid::regclass), ', ' order by t.relname, required.name)
   from pg_class t cross join unnest(array['delete', 'insert', 'select', 'update']) as required (name)
   where t.relnamespace = 'cdc_export'::regnamespace and (t.relkind = 'r' or t.relname = 'watermarks')
     -- Only the owner migrates.
     and t.relname not in ('migrations', 'owned')
     and not has_table_privilege(t.oid, required.name)) as missing_rights
