-- Somebody asked for this delivery again, and no try has ended since: a receiver that answered that it is gone gets these alone. A version before
-- neither writes nor reads it: its processes go by their own way.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

alter table cdc_export.deliveries add column is_asked_for boolean not null default false;
