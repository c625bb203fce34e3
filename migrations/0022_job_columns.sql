-- The columns that a completed job's file has, with their types as of the export, and the columns that tell its rows apart.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

-- {"columns": [{"name": "id", "type": "bigint", "wire": "binary"}, ...], "key": ["id"]}; null: not completed, or by a version that saved none.
alter table exports add column file_columns jsonb;
