-- Which export the output folder's marker named when a job's attempt began: what its own marker may replace.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

alter table exports add column marker_seen uuid;

-- The first of a lane's published exports whose file is still in a folder: what came after it is not forgotten before it.
create index exports_number_with_file on exports (store_id, consumer_id, dataset, number)
  where number is not null and file_removed_at is null;
