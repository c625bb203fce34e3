-- store.gauges.backlog
-- Returns the sizes of the queue and of the change log. The number of the log's rows comes from statistics, which are
-- seconds old.
with pending as (
  select count(*) as jobs,
    greatest(extract(epoch from clock_timestamp() - min(created_at)), 0)::float8 as seconds
  from cdc_export.jobs where status = 'pending'
),
running as (
  select count(*) as jobs from cdc_export.jobs where status = 'processing'
),
unpublished as (
  -- Clients see these jobs as processing, too.
  select count(distinct j.id) as jobs,
    greatest(extract(epoch from clock_timestamp() - min(e.finished_at)), 0)::float8 as seconds
  from cdc_export.jobs j
  join cdc_export.exports e on e.job = j.id
  where j.status = 'committed' and e.status = 'completed' and e.published_at is null
),
held as (
  -- The statement source.purge.give_up_old uses the same times to give up a position.
  select
    greatest(max(extract(epoch from clock_timestamp() - least(w.saved_at, w.deletions_saved_at)))
      filter (where w.deletions_snapshot is not null), 0)::float8 as seconds,
    count(*) filter (where w.log_lost is not null) as given_up
  from watermarks w
)
select
  pending.jobs as pending, pending.seconds as oldest_seconds,
  running.jobs + unpublished.jobs as processing,
  unpublished.jobs as unpublished, unpublished.seconds as unpublished_seconds,
  pg_stat_get_live_tuples('cdc_export.change_log'::regclass) as log_rows,
  pg_total_relation_size('cdc_export.change_log'::regclass) as log_bytes,
  held.seconds as held_seconds, held.given_up
from pending cross join running cross join unpublished cross join held
