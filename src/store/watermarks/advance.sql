-- store.watermarks.advance
-- Moves positions of a consumer, each if its version and watermark are still those that the export found.
-- $1 text: the consumer
-- $2 text[]: the datasets
-- $3 timestamptz[]: the new watermarks
-- $4 bigint[]: the versions that the export found
-- $5 timestamptz[]: the watermarks that the export found
-- $6 text[]: the snapshots up to which live rows are delivered
-- $7 text[]: the snapshots up to which deletions are delivered
-- $8 oid[]: the tables
-- $9 oid[]: the numbers of their files
-- $10 text[]: the hashes of their columns
-- $11 bigint[]: the system identifiers of the cluster
-- $12 text[]: the export types
-- $13 text[]: the settings of each dataset that decide which rows its files have
-- $14 jsonb[]: the types of the files' columns
-- $15 jsonb[]: the values that the guard compares
update watermarks w
set last_exported_at = input.last_exported_at, saved_last_exported_at = input.last_exported_at, version = w.version + 1,
    updated_at = case
      when w.last_exported_at is distinct from input.last_exported_at then greatest(clock_timestamp(), w.updated_at)
      else w.updated_at end,
    live_snapshot = input.live::pg_snapshot, saved_at = clock_timestamp(), log_sequence = log.sequence,
    -- After a loss of the log, deletions have no snapshot until a full export.
    deletions_snapshot = case
      when w.log_lost is null or input.export_type = 'full' then input.deletions::pg_snapshot end,
    deletions_saved_at = case
      when w.deletions_snapshot::text = input.deletions then w.deletions_saved_at else clock_timestamp() end,
    deletions_log_sequence = case
      when w.deletions_snapshot::text = input.deletions then w.deletions_log_sequence else log.sequence end,
    log_lost = case when input.export_type <> 'full' then w.log_lost end,
    file_lost = w.file_lost and input.export_type <> 'full',
    table_oid = input.table_oid, relfilenode = input.relfilenode, table_columns_hash = input.columns_hash,
    cluster_id = input.cluster_id, definition_hash = md5(input.definition), column_types = input.types,
    guard_state = input.guard_state
from (
    select coalesce(pg_sequence_last_value(pg_get_serial_sequence('cdc_export.change_log', 'sequence')::regclass), 0)
      as sequence) log
cross join unnest($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
  as input (dataset, last_exported_at, version, was_exported_at, live, deletions, table_oid, relfilenode, columns_hash,
    cluster_id, export_type, definition, types, guard_state)
where w.consumer_id = $1 and w.dataset = input.dataset and w.version = input.version
  and w.last_exported_at is not distinct from input.was_exported_at
