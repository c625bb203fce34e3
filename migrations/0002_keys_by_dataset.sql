-- Keys for certain datasets. An admin may see everything.
alter table cdc_export.keys
  -- null: all
  add column datasets text[] check (datasets is null or cardinality(datasets) > 0 and 'admin' <> all (scopes)),
  -- True if the operator chose that a key for certain consumers opens all datasets. Nobody chose it for a key that is
  -- older than this column, so a start of the service names such keys.
  add column all_datasets boolean not null default false;
