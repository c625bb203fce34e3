-- How a change is found: statement triggers write the keys of changed rows here, with the transaction that changed them. A
-- consumer's position is the snapshot of its last export; what that could not see has changed since. docs/CHANGE-CAPTURE.md.

select set_config('search_path', string_agg(quote_ident(name), ', ' order by place), true)
from unnest(current_schemas(false)) with ordinality as schemas (name, place) where name <> 'cdc_export';

create table cdc_export.change_log (
  seq bigint generated always as identity, -- orders the changes of one key; never a cursor: it is not the order of commits
  tbl oid not null,
  xid xid8 not null default pg_current_xact_id(), -- of the top-level transaction, the same in its savepoints
  op "char" not null check (op in ('I', 'U', 'D', 'T')),
  pk text collate "C" check ((pk is null) = (op = 'T')),
  old jsonb -- the last image of a row that is gone
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
create index change_log_changes on cdc_export.change_log (tbl, xid);

-- The tables whose changes are captured, and which may be exported.
create table cdc_export.tracked (
  schema_name text not null,
  table_name text not null,
  primary key (schema_name, table_name)
);

-- What a consumer has seen, beside the time that people read. Null where somebody set the time by hand.
alter table watermarks
  add column snap_live pg_snapshot, -- live rows are delivered up to here
  add column snap_del pg_snapshot, -- deletions up to here; an incremental export leaves it
  add column snap_wm timestamptz, -- last_exported_at when they were saved
  add column table_oid oid,
  add column relfilenode oid,
  add column columns_hash text,
  add column triggers_hash text,
  add column partitions_hash text,
  add column cluster_id bigint,
  add column log_lost "char" check (log_lost in ('D', 'A')), -- the log was given up: of deletions, of all
  add column saved_at timestamptz,
  add column saved_seq bigint, -- of the log, to know how much of it the position holds
  add column deletions_saved_at timestamptz, -- the same of snap_del
  add column deletions_saved_seq bigint;

alter table exports
  add column purge_hold pg_snapshot, -- what this attempt may yet read of the log
  add column continuity text,
  add column late_rows bigint,
  add column open_transactions integer,
  add column oldest_transaction_seconds double precision,
  add column table_rewritten boolean;

create index exports_newest on exports (created_at desc, id desc);
create index exports_newest_of on exports (consumer_id, created_at desc, id desc);
