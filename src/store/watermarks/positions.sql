-- store.watermarks.positions
-- Returns the lanes that have a watermark or ever had a job, by consumer and dataset; but for the lanes of a removed
-- consumer.
-- $1 text: only lanes after this consumer
-- $2 text: and after this dataset of that consumer
-- $3 bigint: the limit on lanes
-- $4 text[]: the first consumer of each range
-- $5 text[]: the last consumer of each range
-- $6 text: the pattern of consumers' ids; rows with other ids were inserted by hand
-- $7 text: the pattern of datasets' names
-- $8 text[]: the names of the datasets; null for all
with lanes_of_ranges as (
  select lane.consumer_id, lane.dataset
  from unnest($4, $5) as range (first, last)
  cross join lateral (
    (select w.consumer_id, w.dataset
     from watermarks w
     where (w.consumer_id, w.dataset) > ($1, $2) and w.consumer_id between range.first and range.last
       and w.consumer_id ~ $6 and w.dataset ~ $7 and ($8::text[] is null or w.dataset = any ($8))
     order by 1, 2 limit $3)
    union
    -- The lanes of exports without a consumer have an empty name, which the pattern excludes.
    (select l.consumer_id, l.dataset
     from cdc_export.lanes l
     where (l.consumer_id, l.dataset) > ($1, $2) and l.consumer_id between range.first and range.last
       and l.removed_sequence is distinct from l.last_sequence
       and l.consumer_id ~ $6 and l.dataset ~ $7 and ($8 is null or l.dataset = any ($8))
     order by 1, 2 limit $3)) lane
  order by 1, 2
  limit $3
)
select k.consumer_id, k.dataset, w.last_exported_at, w.consumer_id is not null
from lanes_of_ranges k
left join watermarks w using (consumer_id, dataset)
order by 1, 2
