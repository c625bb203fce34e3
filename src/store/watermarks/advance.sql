-- store.watermarks.advance
-- Moves a consumer's position, if its version and watermark are still those that the export found.
-- $1 text: the consumer
-- $2 text: the dataset
-- $3 timestamptz: the new watermark
-- $4 bigint: the version that the export found
-- $5 timestamptz: the watermark that the export found
-- $6 text: the snapshot up to which live rows are delivered
-- $7 text: the snapshot up to which deletions are delivered
-- $8 oid: the table
-- $9 oid: the number of its file
-- $10 text: the hash of its columns
-- $11 bigint: the system identifier of the cluster
-- $12 text: the export type
-- $13 text: the dataset's settings that decide which rows its files have
-- $14 jsonb: the types of the files' columns
-- $15 jsonb: the values that the guard compares
update watermarks w
set last_exported_at = $3, saved_last_exported_at = $3, version = w.version + 1,
    updated_at = case
      when w.last_exported_at is distinct from $3 then greatest(clock_timestamp(), w.updated_at)
      else w.updated_at end,
    live_snapshot = $6::pg_snapshot, saved_at = clock_timestamp(), log_sequence = log.sequence,
    -- After a loss of the log, deletions have no snapshot until a full export.
    deletions_snapshot = case when w.log_lost is null or $12 = 'full' then $7::pg_snapshot end,
    deletions_saved_at = case
      when w.deletions_snapshot::text = $7 then w.deletions_saved_at else clock_timestamp() end,
    deletions_log_sequence = case
      when w.deletions_snapshot::text = $7 then w.deletions_log_sequence else log.sequence end,
    log_lost = case when $12 <> 'full' then w.log_lost end,
    file_lost = w.file_lost and $12 <> 'full',
    table_oid = $8, relfilenode = $9, table_columns_hash = $10, cluster_id = $11,
    definition_hash = md5($13), column_types = $14, guard_state = $15
from (
  select coalesce(pg_sequence_last_value(pg_get_serial_sequence('cdc_export.change_log', 'sequence')::regclass), 0)
    as sequence) log
where w.consumer_id = $1 and w.dataset = $2 and w.version = $4 and w.last_exported_at is not distinct from $5
