-- store.watermarks.is_new_consumer
-- $1 text: the consumer
-- $2 uuid: its job that does not count
-- $3 text[]: the datasets that the caller may see; null: all
with first_jobs as (
  select e.dataset, j.created_at
  from cdc_export.jobs j
  join cdc_export.exports e on e.job = j.id
  where j.id = $2 and e.lane_sequence = 1
)
select
  not exists (
    select from cdc_export.lanes l
    where l.consumer_id = $1 and ($3::text[] is null or l.dataset = any ($3))
      and l.dataset not in (select f.dataset from first_jobs f))
  and not exists (
    select from watermarks w
    where w.consumer_id = $1 and ($3 is null or w.dataset = any ($3))
      and not exists (select from first_jobs f where f.dataset = w.dataset and f.created_at <= w.updated_at))
