-- Any table, not only users: the key that its triggers log, what of a dataset an export has, and what its file looked like.
select set_config('search_path', string_agg(quote_ident(name), ', ' order by place), true)
from unnest(current_schemas(false)) with ordinality as schemas (name, place) where name <> 'cdc_export';

alter table cdc_export.tracked
  add column key text[]; -- null: the primary key, in a row from before this column

-- What the catalogue said of the dataset's rows when a position was saved, and of which types its columns were; null: from before
-- these columns.
alter table watermarks
  add column definition_hash text,
  add column column_types jsonb;

alter table exports
  add column selection jsonb, -- of an ad-hoc export; null: all of the dataset
  add column columns_hash text, -- names and types of the file's columns
  add column schema_changed boolean, -- since the consumer's last export
  add constraint selected_ad_hoc check (selection is null or consumer_id is null);
