-- store.watermarks.remove_consumer
-- Deletes a consumer's positions, and takes its lanes out of lists.
-- $1 text: the consumer
-- $2 text[]: the datasets; null: all
-- $3 jsonb: the sender of the request
with removed as (
  delete from watermarks where consumer_id = $1 and ($2::text[] is null or dataset = any ($2))),
hidden as (
  update cdc_export.lanes set removed_sequence = last_sequence, acknowledged = null, acknowledged_at = null
  where consumer_id = $1 and ($2 is null or dataset = any ($2)))
select cdc_export.audit($3, 'remove_consumer', $1, null, null)
