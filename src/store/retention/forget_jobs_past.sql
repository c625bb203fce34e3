-- store.retention.forget_jobs_past
-- Deletes jobs that are past the retention and have no file any more, the oldest of each lane first.
-- $1 text[]: the consumers of the lanes; the empty one has the ad-hoc exports
-- $2 text[]: their datasets
-- $3 bigint: the number of kept ended jobs of a lane; null for no limit
-- $4 float8: the seconds for which a job is kept; null for no limit
-- $5 bigint: the limit on deleted jobs
-- $6 float8: the seconds for which an unacknowledged export, or one with an open delivery, is kept
-- $7 boolean: true if a job is kept until its manifest is removed
-- include retention/bounds_of_jobs.sql
,
past as (
  select e.id
  from bounds
  cross join lateral (
    select f.id
    from exports f
    where coalesce(f.consumer_id, '') = bounds.consumer_id and f.dataset = bounds.dataset
      and f.finished_at is not null and (f.status <> 'completed' or f.file_removed_at is not null)
      and (f.finished_at, f.id) <= (bounds.finished_at, bounds.id)
      -- Spares an export that an acknowledging consumer has not acknowledged yet. A restore may have set the numbers
      -- back or left gaps. At worst this keeps an export for longer.
      and not exists (
        select from cdc_export.lanes l
        where l.consumer_id = f.consumer_id and l.dataset = f.dataset and f.number > l.acknowledged
          and extract(epoch from clock_timestamp() - f.published_at) < $6)
      and (not $7 or f.manifest is null or f.number is null)
      -- Spares the members of a batch of which one is not published. Its manifest is going to count them.
      and (f.batch_id is null or f.batch_id not in (
        select u.batch_id from exports u
        where u.status = 'completed' and u.published_at is null and u.batch_id is not null))
      -- Spares a job with an open delivery of its end, and the members of a batch with one of the batch's end.
      and not exists (
        select from cdc_export.deliveries d
        where d.job = coalesce(f.batch_id, f.id) and d.delivered_at is null and d.dead_at is null
          and extract(epoch from clock_timestamp() - d.created_at) < $6)
      -- Keeps the lane's last published job, because the next export continues from it.
      and (f.published_at is null or f.lane_sequence is null or exists (
        select from exports l
        where l.consumer_id = f.consumer_id and l.dataset = f.dataset and l.lane_sequence > f.lane_sequence
          and l.status = 'completed' and l.published_at is not null))
      -- Keeps jobs published after one whose file is still at a destination. A consumer that loaded that file last
      -- requests them.
      and not exists (
        select from cdc_export.destinations d
        cross join lateral (
          select k.number from exports k
          where k.destination_id = d.id and k.consumer_id = f.consumer_id and k.dataset = f.dataset
            and k.number is not null and k.file_removed_at is null
          order by k.number limit 1) kept
        where kept.number < f.number)
    order by f.finished_at, f.id
    limit $5) e
  limit $5
)
delete from exports where id = any (array(select past.id from past))
