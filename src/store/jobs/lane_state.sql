-- store.jobs.lane_state
-- Returns what a new job needs to know of its lanes, whose rows must be locked:
-- 1. the number of open exports in the fullest of the lanes, or of the requester's open ad-hoc exports of the dataset
-- 2. the last turn of the open jobs of the consumer that the same key asked for
-- 3. the time of the new job: later than the times of the lanes' last exports, even if the clock was set back
-- $1 bigint: the limit of the count
-- $2 text: the consumer; null: an ad-hoc export
-- $3 text[]: the datasets
-- $4 text: the public part of the caller's key; null: none
select
  (select max(open.exports)
   from unnest($3) as its (dataset)
   cross join lateral (
     select count(*) as exports from (
       select from cdc_export.exports
       where consumer_id = $2 and dataset = its.dataset and status = 'open' and published_at is null
       union all
       select from cdc_export.jobs j
       join cdc_export.exports e on e.job = j.id
       where $2 is null and coalesce(j.key_prefix, '') = coalesce($4, '') and coalesce(j.consumer_id, '') = ''
         and j.status in ('pending', 'processing') and e.dataset = its.dataset
       limit $1) counted) open),
  (select max(turn) from cdc_export.jobs
   where coalesce(key_prefix, '') = coalesce($4, '') and coalesce(consumer_id, '') = coalesce($2, '')
     and status in ('pending', 'processing')),
  greatest(clock_timestamp(), (
    select max(last.ended) + interval '1 microsecond'
    from unnest($3) as its (dataset)
    cross join lateral (
      select greatest(j.created_at, e.finished_at) as ended
      from cdc_export.exports e
      join cdc_export.jobs j on j.id = e.job
      where e.consumer_id = $2 and e.dataset = its.dataset order by e.lane_sequence desc limit 1) last))
