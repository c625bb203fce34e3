-- store.files.unpublished
-- Returns also an export of each job that has waited for a minute at another destination.
-- $1 uuid: the destination
select
  -- include files/columns.sql
from cdc_export.jobs j
cross join lateral (select max(own.published_at) as published_at from cdc_export.exports own where own.job = j.id) last
join cdc_export.exports e on e.job = j.id
where j.status = 'committed' and e.status = 'completed' and e.published_at is null
  and (e.destination_id = $1 or j.database_id <> (select cdc_export.database_id())
    -- One export stands for all of a job that no process publishes.
    or e.finished_at < clock_timestamp() - interval '1 minute' and e.dataset = (
      select min(own.dataset) from cdc_export.exports own
      where own.job = j.id and own.status = 'completed' and own.published_at is null))
  -- For two seconds the worker is expected to go on. A time in the future is that of a clock which was set back since.
  and abs(extract(epoch from clock_timestamp() - greatest(e.finished_at, last.published_at))) > 2
order by e.finished_at
limit 1000
