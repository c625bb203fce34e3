-- store.retention.unused_lanes
-- Locks and returns the lanes that have neither a job nor a watermark and never published an export.
-- $1 text[]: the consumers of the lanes
-- $2 text[]: their datasets
select l.consumer_id, l.dataset
from unnest($1, $2) as a (consumer_id, dataset)
join cdc_export.lanes l using (consumer_id, dataset)
where l.last_number = 0
  and l.consumer_id <> '' -- Exports without a consumer have one such lane for each dataset.
  and not exists (select from cdc_export.exports e where e.consumer_id = l.consumer_id and e.dataset = l.dataset)
  and not exists (select from watermarks w where w.consumer_id = l.consumer_id and w.dataset = l.dataset)
for update of l skip locked
