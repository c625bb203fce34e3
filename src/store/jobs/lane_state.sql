-- store.jobs.lane_state
-- Returns what new jobs need to know of their lanes, whose rows must be locked:
-- 1. the number of open jobs in the fullest of the lanes, or of the open ad-hoc jobs of a requester in the dataset
-- 2. the last turn of the open jobs of the requester that the same key asked for
-- 3. the time of the new jobs: later than the times of the lanes' last jobs, even if the clock was set back
-- $1 bigint: the limit of the count
-- $2 text: the consumer; null: an ad-hoc export
-- $3 text[]: the datasets
-- $4 text: the requester: the consumer, or the API key of an ad-hoc export
-- $5 text: the public part of the caller's key; null: none
select
  (select max(open.jobs)
   from unnest($3) as its (dataset)
   cross join lateral (
     select count(*) as jobs from (
       select from exports
       where consumer_id = $2 and dataset = its.dataset and status in ('pending', 'processing')
       union all
       select from exports
       where $2 is null and consumer_id is null and coalesce(consumer_id, ':' || key_prefix, '') = $4
         and dataset = its.dataset and status in ('pending', 'processing')
       limit $1) counted) open),
  (select max(turn) from exports
   where coalesce(consumer_id, ':' || key_prefix, '') = $4 and status in ('pending', 'processing')
     and turn < 'infinity' and key_prefix is not distinct from $5),
  greatest(clock_timestamp(), (
    select max(last.ended) + interval '1 microsecond'
    from unnest($3) as its (dataset)
    cross join lateral (
      select greatest(created_at, finished_at) as ended from exports
      where consumer_id = $2 and dataset = its.dataset order by lane_sequence desc limit 1) last))
