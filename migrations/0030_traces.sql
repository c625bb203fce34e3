-- Where a job belongs in a trace, as the W3C's header `traceparent` says it: of the request for it, else of its first attempt.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

alter table exports add column traceparent text;
