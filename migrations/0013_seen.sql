-- What else the guard compares with a saved position, by name: an object. What it lacks, since an older version saved it, is adopted.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

alter table watermarks add column seen jsonb;
