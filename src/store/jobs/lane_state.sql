-- store.jobs.lane_state
-- Returns what a new job needs to know of the queue and of its lanes, whose rows must be locked.
-- $1 bigint: the limit of the count in a lane
-- $2 text: the consumer; null: an ad-hoc export
-- $3 text[]: the datasets
-- $4 text: the public part of the caller's key; null: none
-- $5 bigint: the limit of the count of open jobs
select
  -- The open exports in the fullest of the lanes, or the requester's open ad-hoc exports of the dataset.
  (select max(open.exports)
   from unnest($3) as lane (dataset)
   cross join lateral (
     select count(*) as exports from (
       select from cdc_export.exports e
       where e.consumer_id = $2 and e.dataset = lane.dataset and e.status = 'open' and e.published_at is null
       union all
       select from cdc_export.jobs j
       join cdc_export.exports e on e.job = j.id
       where $2 is null and coalesce(j.key_prefix, '') = coalesce($4, '') and coalesce(j.consumer_id, '') = ''
         and j.status in ('pending', 'processing') and e.dataset = lane.dataset
       limit $1) counted) open) as open_in_lane,
  -- The last turn of the open jobs of the consumer that the same key asked for.
  (select max(turn) from cdc_export.jobs
   where coalesce(key_prefix, '') = coalesce($4, '') and coalesce(consumer_id, '') = coalesce($2, '')
     and status in ('pending', 'processing')) as last_turn,
  -- The time of the new job: later than the times of the lanes' last exports, even if the clock was set back.
  greatest(clock_timestamp(), (
    select max(last.ended) + interval '1 microsecond'
    from unnest($3) as lane (dataset)
    cross join lateral (
      select greatest(j.created_at, e.finished_at) as ended
      from cdc_export.exports e
      join cdc_export.jobs j on j.id = e.job
      where e.consumer_id = $2 and e.dataset = lane.dataset order by e.lane_sequence desc limit 1) last)) as now,
  (select count(*)::integer from (
    select from cdc_export.jobs where status in ('pending', 'processing') limit $5) open) as open_jobs,
  -- Those that the key asked for. The only usable key has no limit of its own, so its jobs count as none.
  case
    when exists (
      select from cdc_export.keys
      where prefix <> $4 and revoked_at is null and (expires_at is null or expires_at > clock_timestamp()))
    then (
      select count(*)::integer from (
        select from cdc_export.jobs
        where coalesce(key_prefix, '') = $4 and status in ('pending', 'processing') limit $5) open)
    else 0 end as open_of_key,
  -- The turn of the jobs that were claimed last. Between two claims no job runs: then the turn of the next one. With an
  -- empty queue, the time. A job that was never claimed, of a dataset that is gone, doesn't keep the turns back for
  -- ever.
  greatest(
    case when waiting.turn is null then clock_timestamp()
      else coalesce((select max(turn) from cdc_export.jobs where status = 'processing'), waiting.turn) end,
    clock_timestamp() - interval '1 day') as current_turn
from (
  select min(turn) as turn from cdc_export.jobs
  where status = 'pending' and run_at <= clock_timestamp()) waiting
