-- What a job's file is compressed with.
select set_config('search_path', string_agg(quote_ident(name), ', ' order by place), true)
from unnest(current_schemas(false)) with ordinality as schemas (name, place) where name <> 'cdc_export';

alter table exports
  add column compression text not null default 'none',
  add constraint compressed_once check (format <> 'parquet' or compression = 'none');
