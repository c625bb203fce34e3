-- store.watermarks.remove_consumer
-- $1 text: the consumer
-- $2 text[]: the datasets; null: all
-- $3 text[]: the datasets of the lanes that are locked. A lane that came since has a job that is to run.
with removed as (
  delete from watermarks w
  where w.consumer_id = $1 and ($2::text[] is null or w.dataset = any ($2))
    and (w.dataset = any ($3) or not exists (
      select from cdc_export.lanes l where l.consumer_id = w.consumer_id and l.dataset = w.dataset)))
update cdc_export.lanes
set removed_sequence = last_sequence, removed_number = last_number, acknowledged = null, acknowledged_at = null
where consumer_id = $1 and dataset = any ($3)
