-- store.watermarks.others_of_new
-- Returns the ids of other consumers, if this consumer had no watermark and no job before the given ones; else null.
-- $1 text: the consumer
-- $2 uuid[]: its jobs that do not count
-- $3 text: the pattern of consumers' ids; rows with other ids were inserted by hand
-- $4 text[]: the consumers that the caller may see; null for all
-- $5 text[]: the datasets that the caller may see; null for all
with first_jobs as (
  select e.dataset, e.created_at from exports e where e.id = any ($2) and e.lane_sequence = 1
), others as (
  select w.consumer_id, w.dataset from watermarks w
  union
  select l.consumer_id, l.dataset from cdc_export.lanes l where l.removed_sequence is distinct from l.last_sequence
)
select case
  when not exists (
      select from cdc_export.lanes l
      where l.consumer_id = $1 and l.dataset not in (select f.dataset from first_jobs f))
    and not exists (
      select from watermarks w
      where w.consumer_id = $1
        and not exists (select from first_jobs f where f.dataset = w.dataset and f.created_at <= w.updated_at))
  then array(
    select o.consumer_id
    from others o
    where o.consumer_id <> $1 and o.consumer_id ~ $3
      and ($4::text[] is null or o.consumer_id = any ($4))
      and ($5::text[] is null or o.dataset = any ($5))
    group by 1)
  end
