-- store.retention.forget_jobs_past
-- Deletes exports that are past the retention of jobs and have no file any more, the oldest of each lane first. A job
-- goes with its last export.
-- $1 text[]: the consumers of the lanes; the empty one has the ad-hoc exports
-- $2 text[]: their datasets
-- $3 bigint: the number of kept ended jobs of a lane; null for no limit
-- $4 float8: the seconds for which a job is kept; null for no limit
-- $5 timestamptz: the present time; null: no clock is believed, and nothing is too old
-- $6 bigint: the limit on deleted exports
-- $7 float8: the seconds for which an unacknowledged export, or one with an open delivery, is kept
-- $8 boolean: true if an export is kept until its manifest is removed
-- include retention/bounds_of_jobs.sql
,
past as (
  select e.job, bounds.dataset
  from bounds
  cross join lateral (
    select f.job
    from cdc_export.exports f
    join cdc_export.jobs own on own.id = f.job
    where coalesce(f.consumer_id, '') = bounds.consumer_id and f.dataset = bounds.dataset
      and f.finished_at is not null and (f.status <> 'completed' or f.file_removed_at is not null)
      and (f.finished_at, f.job) <= (bounds.finished_at, bounds.job)
      -- Spares an export that an acknowledging consumer has not acknowledged yet. A restore may have set the numbers
      -- back or left gaps. At worst this keeps an export for longer.
      and not exists (
        select from cdc_export.lanes l
        where l.consumer_id = f.consumer_id and l.dataset = f.dataset and f.number > l.acknowledged
          and coalesce(extract(epoch from $5 - f.published_at) < $7, true))
      and (not $8 or f.manifest is null or f.number is null)
      -- Spares a job of which an export is not published. Its manifest is going to count the others.
      and own.status <> 'committed'
      -- Spares an export that lost its file while its job has others: the job would not have failed any more.
      and not (f.status = 'failed' and exists (
        select from cdc_export.exports other where other.job = f.job and other.status = 'completed'))
      -- Spares a job with an open delivery of its end.
      and not exists (
        select from cdc_export.deliveries d
        where d.job = f.job and d.delivered_at is null and d.dead_at is null
          and coalesce(extract(epoch from $5 - d.created_at) < $7, true))
      -- Keeps the lane's last published export, because the next one continues from it.
      and (f.number is null or exists (
        select from cdc_export.exports l
        where l.consumer_id = f.consumer_id and l.dataset = f.dataset and l.number > f.number))
      -- Keeps exports published after one whose file is still at a destination. A consumer that loaded that file last
      -- requests them.
      and not exists (
        select from cdc_export.destinations d
        cross join lateral (
          select k.number from cdc_export.exports k
          where k.destination_id = d.id and coalesce(k.consumer_id, '') = f.consumer_id and k.dataset = f.dataset
            and k.published_at is not null and k.file_removed_at is null
          order by k.finished_at, k.job limit 1) kept
        where kept.number < f.number)
    order by f.finished_at, f.job
    limit $6) e
  limit $6
)
delete from cdc_export.exports e
using past
where e.job = past.job and e.dataset = past.dataset
