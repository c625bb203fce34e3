-- store.watermarks.first
-- Saves a consumer's first position in a dataset, unless it has one by now. The parameters are those of advance.sql.
-- $1 text: the consumer
-- $2 text: the dataset
-- $3 timestamptz: the watermark
-- $4 bigint: not used: the version that the export found
-- $5 timestamptz: not used: the watermark that the export found
-- $6 text: the snapshot up to which live rows are delivered
-- $7 text: the snapshot up to which deletions are delivered
-- $8 oid: the table
-- $9 oid: the number of its file
-- $10 text: the hash of its columns
-- $11 bigint: the system identifier of the cluster
-- $12 text: not used: the export type
-- $13 text: the dataset's settings that decide which rows its files have
-- $14 jsonb: the types of the files' columns
-- $15 jsonb: the values that the guard compares
insert into watermarks (
  consumer_id, dataset, last_exported_at, saved_last_exported_at, updated_at, version,
  live_snapshot, deletions_snapshot, saved_at, log_sequence, deletions_saved_at, deletions_log_sequence,
  table_oid, relfilenode, table_columns_hash, cluster_id, definition_hash, column_types, guard_state)
select
  $1, $2, $3, $3, clock_timestamp(), 1,
  $6::pg_snapshot, $7::pg_snapshot, clock_timestamp(), log.sequence, clock_timestamp(), log.sequence,
  $8, $9, $10, $11, md5($13), $14, $15
from (
  select coalesce(pg_sequence_last_value(pg_get_serial_sequence('cdc_export.change_log', 'sequence')::regclass), 0)
    as sequence) log
on conflict (consumer_id, dataset) do nothing
