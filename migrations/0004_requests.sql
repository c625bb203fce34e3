-- A POST that carries a key makes one job, however often it is sent. A retried job names the one before it.
select set_config('search_path', string_agg(quote_ident(name), ', ' order by place), true)
from unnest(current_schemas(false)) with ordinality as schemas (name, place) where name <> 'cdc_export';

alter table exports
  add column idempotency_key text collate "C",
  add column retry_of uuid;
create unique index exports_idempotency_key on exports (coalesce(consumer_id, ''), idempotency_key)
  where idempotency_key is not null;
