-- store.jobs.open_of_lane
-- Counts the open jobs of a lane, or the open ad-hoc jobs of a requester in a dataset. Returns the number, and the last
-- turn of the requester's open jobs.
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
   where coalesce(consumer_id, ':' || key_prefix, '') = $4 and status in ('pending', 'processing'))
