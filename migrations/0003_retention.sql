-- When a completed job's file was removed, on request or by retention. The row stays.
select set_config('search_path', string_agg(quote_ident(name), ', ' order by place), true)
from unnest(current_schemas(false)) with ordinality as schemas (name, place) where name <> 'cdc_export';

alter table exports
  add column file_removed_at timestamptz,
  add constraint removed_is_published check (file_removed_at is null or published_at is not null);
create index exports_finished_of on exports (consumer_id, finished_at desc, id desc) where finished_at is not null;
