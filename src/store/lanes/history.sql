-- store.lanes.history
-- $1 text[]: the consumer of each lane
-- $2 text[]: the dataset of each lane
-- $3 bigint: the number of completed exports that are looked at
-- $4 bigint: the limit on counted failures
select lane.consumer_id, lane.dataset, failed.exports as failures, failed.since as failing_since,
  completed.is_unpublished, completed.at as completed_at,
  extract(epoch from completed.pause)::float8 as usual_seconds, clock_timestamp() as now
from unnest($1, $2) as lane (consumer_id, dataset)
-- The exports before its consumer was removed don't count.
left join cdc_export.lanes l on l.consumer_id = lane.consumer_id and l.dataset = lane.dataset
cross join lateral (
  select max(ended.lane_sequence) as lane_sequence, max(ended.finished_at) as at,
    coalesce(bool_or(ended.is_unpublished), false) as is_unpublished,
    percentile_cont(0.5) within group (order by ended.pause) as pause
  from (
    select last.lane_sequence, last.finished_at, last.is_unpublished,
      last.finished_at - lag(last.finished_at) over (order by last.lane_sequence) as pause
    from (
      select e.lane_sequence, e.finished_at,
        e.status = 'completed' and e.published_at is null
          and e.finished_at < clock_timestamp() - interval '1 minute' as is_unpublished
      from cdc_export.exports e
      where e.consumer_id = lane.consumer_id and e.dataset = lane.dataset and e.status in ('completed', 'skipped')
        and e.lane_sequence > coalesce(l.removed_sequence, 0)
      order by e.lane_sequence desc
      limit $3) last) ended) completed
cross join lateral (
  select count(*) as exports, min(last.finished_at) as since
  from (
    select e.finished_at
    from cdc_export.exports e
    where e.consumer_id = lane.consumer_id and e.dataset = lane.dataset and e.status = 'failed'
      and e.lane_sequence > coalesce(completed.lane_sequence, l.removed_sequence, 0)
    order by e.lane_sequence desc
    limit $4) last) failed
