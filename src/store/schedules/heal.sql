-- store.schedules.heal
-- Locks a schedule whose last export failed because it needs a full one, and returns that export.
-- $1 text: the schedule
-- $2 text: its consumer
-- $3 text: its dataset
select e.id
from cdc_export.schedules s
join exports e on e.id = s.last_job
where s.name = $1 and e.consumer_id = $2 and e.dataset = $3
  and e.status = 'failed' and e.error_code = 'full_export_needed' and e.export_type <> 'full'
  -- No later job is in the lane.
  and not exists (
    select from exports later
    where later.consumer_id = e.consumer_id and later.dataset = e.dataset and later.lane_sequence > e.lane_sequence)
  -- If the last full export didn't help, the next one is due an hour later.
  and not exists (
    select from exports h
    where h.id = s.healed_by and h.finished_at between clock_timestamp() - interval '1 hour' and clock_timestamp()
      and not exists (
        select from exports good
        where good.consumer_id = h.consumer_id and good.dataset = h.dataset and good.lane_sequence > h.lane_sequence
          and good.status in ('completed', 'skipped') and good.export_type <> 'full'))
for update of s
