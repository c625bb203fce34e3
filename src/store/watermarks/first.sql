-- store.watermarks.first
-- Saves a consumer's first positions in datasets, each unless it has one by now. The parameters are those of
-- advance.sql.
-- $1 text: the consumer
-- $2 text[]: the datasets
-- $3 timestamptz[]: the watermarks
-- $4 bigint[]: not used: the versions that the export found
-- $5 timestamptz[]: not used: the watermarks that the export found
-- $6 text[]: the snapshots up to which live rows are delivered
-- $7 text[]: the snapshots up to which deletions are delivered
-- $8 oid[]: the tables
-- $9 oid[]: the numbers of their files
-- $10 text[]: the hashes of their columns
-- $11 bigint[]: the system identifiers of the cluster
-- $12 text[]: not used: the export types
-- $13 text[]: the settings of each dataset that decide which rows its files have
-- $14 jsonb[]: the types of the files' columns
-- $15 jsonb[]: the values that the guard compares
insert into watermarks (
  consumer_id, dataset, last_exported_at, saved_last_exported_at, updated_at, version,
  live_snapshot, deletions_snapshot, saved_at, log_sequence, deletions_saved_at, deletions_log_sequence,
  table_oid, relfilenode, table_columns_hash, cluster_id, definition_hash, column_types, guard_state)
select
  $1, input.dataset, input.last_exported_at, input.last_exported_at, clock_timestamp(), 1,
  input.live::pg_snapshot, input.deletions::pg_snapshot, clock_timestamp(), log.sequence, clock_timestamp(),
  log.sequence,
  input.table_oid, input.relfilenode, input.columns_hash, input.cluster_id, md5(input.definition), input.types,
  input.guard_state
from (
    select coalesce(pg_sequence_last_value(pg_get_serial_sequence('cdc_export.change_log', 'sequence')::regclass), 0)
      as sequence) log
cross join unnest($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
  as input (dataset, last_exported_at, version, was_exported_at, live, deletions, table_oid, relfilenode, columns_hash,
    cluster_id, export_type, definition, types, guard_state)
on conflict (consumer_id, dataset) do nothing
