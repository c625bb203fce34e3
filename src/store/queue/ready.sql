-- The condition of a job `r` that a process can run, and that waits for no other job.
-- The parameters $1 to $4 are those of `queue/claim.sql`.
r.status = 'pending' and r.format = any ($1) and r.dataset = any ($2)
-- The job belongs to this destination, or to one that no process uses.
and (r.destination_id is null or r.destination_id = $3
  or not exists (
    select from cdc_export.destinations d
    where d.id = r.destination_id
      -- A process that has just begun to use it accepts jobs before other processes know of it.
      and (d.id <> all ($4) or d.seen_at between clock_timestamp() - interval '1 minute' and clock_timestamp())))
-- The dataset's table is not locked, as far as attempts know: none tries it right now, and the last one is a while ago.
and r.dataset not in (
  select b.dataset from exports b
  where b.locked_until is not null and b.status in ('pending', 'processing')
    and (b.status = 'processing'
      -- A later time is from before the clock was set back.
      or b.locked_until between statement_timestamp() and statement_timestamp() + interval '10 seconds'))
-- No job of the lane runs, waits for its retry, or waits for its files' names. The last condition covers the first two
-- as well, but probes a long lane job by job; this one takes one pass. The third keeps the lane's order: a reader must
-- not see a later export first.
and (r.consumer_id is null or (r.consumer_id, r.dataset) not in (
  select b.consumer_id, b.dataset from exports b
  where b.status = 'processing' and b.consumer_id is not null
  union all
  select b.consumer_id, b.dataset from exports b
  where b.status = 'pending' and b.run_at > statement_timestamp() and b.consumer_id is not null
  union all
  select b.consumer_id, b.dataset from exports b
  where b.status = 'completed' and b.published_at is null and b.consumer_id is not null))
-- No earlier job of the lane is open.
and not exists (
  select from exports earlier
  where earlier.consumer_id = r.consumer_id and earlier.dataset = r.dataset
    and earlier.lane_sequence < r.lane_sequence and earlier.status in ('pending', 'processing'))
