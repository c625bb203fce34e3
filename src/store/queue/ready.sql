-- The condition of a pending job `j` that a process may claim once its time has come.
-- The parameters $1 to $4 are those of `queue/claim.sql`.
j.status = 'pending' and j.format = any ($1)
-- The job belongs to this destination, or to one that no process uses.
and (j.destination_id is null or j.destination_id = $3
  or not exists (
    select from cdc_export.destinations d
    where d.id = j.destination_id
      -- A process that has just begun to use it accepts jobs before other processes know of it.
      and (d.id <> all ($4) or d.seen_at between clock_timestamp() - interval '1 minute' and clock_timestamp())))
-- Each of its lanes is free. An aggregate, because Postgres would join another form with all exports.
and (
  select bool_and(
    e.dataset = any ($2)
    -- The dataset's table is not locked, as far as attempts know: none tries it right now, and the last one is a while
    -- ago. A later time is from before the clock was set back.
    and e.dataset not in (
      select l.name from cdc_export.locked_datasets l
      where l.until between statement_timestamp() and statement_timestamp() + interval '10 seconds')
    -- No job of the lane runs, waits for its retry, or waits for its files' names. The last condition covers this, but
    -- probes a long lane job by job; this one takes one pass.
    and (e.consumer_id is null or (e.consumer_id, e.dataset) not in (
      select b.consumer_id, b.dataset
      from cdc_export.jobs busy
      -- `offset 0`, so that each busy job looks for its exports.
      cross join lateral (select * from cdc_export.exports own where own.job = busy.id offset 0) b
      where (busy.status in ('processing', 'committed')
          or busy.status = 'pending' and busy.run_at > statement_timestamp())
        and b.consumer_id is not null and b.published_at is null and b.status in ('open', 'completed')))
    -- No earlier export of the lane is open, or waits for its files' names: a reader must not see a later one first.
    and not exists (
      select from cdc_export.exports earlier
      where earlier.consumer_id = e.consumer_id and earlier.dataset = e.dataset
        and earlier.lane_sequence < e.lane_sequence
        and earlier.published_at is null and earlier.status in ('open', 'completed')))
  from cdc_export.exports e
  where e.job = j.id)
