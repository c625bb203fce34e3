-- Which database made a job, and on which timeline of its cluster: in a copy, or after the database was put back, a job's file may
-- be somebody's already.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

-- The database's identity: its cluster's and its own number. A copy of it has another one.
create function cdc_export.database_id() returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select lpad(to_hex(c.system_identifier), 16, '0') || '-' || d.oid
  from pg_control_system() c, pg_database d where d.datname = current_database()
$$;

-- The timeline that the cluster writes on; null for a standby.
create function cdc_export.timeline() returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_lsn()), 8) end
$$;

-- Defaults, so that a process of the version before records them too. The jobs that are here are this database's; of what timeline
-- isn't known.
alter table exports add column database_id text collate "C" default cdc_export.database_id();
alter table exports add column timeline text collate "C";
alter table exports alter column timeline set default cdc_export.timeline();
