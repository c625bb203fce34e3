-- Deletions that their transaction keeps quiet about are counted. docs/CHANGE-CAPTURE.md, "Quiet deletions".
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

alter table cdc_export.change_log add column quiet bigint; -- of op Q, which has no key: how many rows a statement deleted

alter table exports add column quiet_deletes bigint; -- of the transactions that the consumer's last export had not seen
