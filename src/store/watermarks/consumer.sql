-- store.watermarks.consumer
-- $1 text: the consumer
-- $2 text[]: the datasets that count; null: all
select
  exists (
    select from watermarks where consumer_id = $1 and ($2::text[] is null or dataset = any ($2)))
  or exists (
    select from cdc_export.lanes
    where consumer_id = $1 and removed_sequence is distinct from last_sequence
      and ($2 is null or dataset = any ($2))) as is_known,
  exists (
    select from cdc_export.exports
    where consumer_id = $1 and ($2 is null or dataset = any ($2)) and published_at is null
      and status in ('open', 'completed')) as is_open
