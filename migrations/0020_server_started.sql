-- When the server had started that took a job on. Its clock may be set: whether it is the same run of the server is told by this alone.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

-- Null: from before this column, and so of another run.
alter table exports add column server_started_at timestamptz;
alter table exports alter column server_started_at set default pg_catalog.pg_postmaster_start_time();
