-- Keys for certain datasets. An admin may see everything.
alter table cdc_export.keys
  -- null: all
  add column datasets text[] check (datasets is null or cardinality(datasets) > 0 and 'admin' <> all (scopes)),
  -- Whether the operator chose that a key for certain consumers opens all datasets. A key from before this column did
  -- not get that choice, so a start of the service names it.
  add column all_datasets boolean not null default false;
