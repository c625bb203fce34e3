-- store.jobs.lane_state
-- Returns what a new job needs to know of its lane, whose row must be locked:
-- 1. the number of open jobs, or of the open ad-hoc jobs of a requester in the dataset
-- 2. the last turn of the requester's open jobs
-- 3. the time of the new job: later than the times of the lane's last job, even if the clock was set back
-- $1 bigint: the limit of the count
-- $2 text: the consumer; null: an ad-hoc export
-- $3 text: the dataset
-- $4 text: the requester: the consumer, or the API key of an ad-hoc export
select
  (select count(*) from (
    select from exports
    where consumer_id = $2 and dataset = $3 and status in ('pending', 'processing')
    union all
    select from exports
    where $2 is null and consumer_id is null and coalesce(consumer_id, ':' || key_prefix, '') = $4 and dataset = $3
      and status in ('pending', 'processing')
    limit $1) open),
  (select max(turn) from exports
   where coalesce(consumer_id, ':' || key_prefix, '') = $4 and status in ('pending', 'processing')),
  greatest(clock_timestamp(), (
    select greatest(created_at, finished_at) + interval '1 microsecond' from exports
    where consumer_id = $2 and dataset = $3 order by lane_sequence desc limit 1))
