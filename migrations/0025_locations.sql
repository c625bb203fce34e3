-- Where the file of an export is, as a URL: for who reads files where they are, and not over the API.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

alter table cdc_export.files add column location text; -- null: not published yet, or by a version before this column
