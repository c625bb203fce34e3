-- store.lanes.export_number
-- Returns the number of an export in its lane. One that is not published yet has the lane's last number, and a skipped
-- one the number of the export before it, or 0. Returns no row if the lane has no such export, or if its file has other
-- content.
-- $1 uuid: the job
-- $2 text: the consumer
-- $3 text: the dataset
-- $4 text: the SHA-256 of its file, or its digest; null: any
select case e.status
    when 'completed' then coalesce(e.number, l.last_number)
    else coalesce((
      select max(earlier.number) from cdc_export.exports earlier
      where earlier.consumer_id = e.consumer_id and earlier.dataset = e.dataset
        and earlier.lane_sequence < e.lane_sequence and earlier.number is not null), 0) end
from cdc_export.exports e
join cdc_export.lanes l on l.consumer_id = e.consumer_id and l.dataset = e.dataset
where e.job = $1 and e.consumer_id = $2 and e.dataset = $3 and e.status in ('completed', 'skipped')
  -- An export of a consumer that was removed since does not count.
  and e.lane_sequence > coalesce(l.removed_sequence, 0)
  and ($4::text is null or $4 in (e.sha256, e.digest))
