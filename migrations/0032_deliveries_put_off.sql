-- When `run_at` of a delivery was set: where the clock was set back since, it is of a time to come, and the delivery waits for what is left of
-- its pause in place of the clock. A version before doesn't write it: what that one puts off waits no shorter for it.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

alter table cdc_export.deliveries add column put_off_at timestamptz not null default clock_timestamp();
