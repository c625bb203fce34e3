-- store.files.unpublished
-- $1 uuid: the destination
select
  -- include files/columns.sql
from cdc_export.jobs j
join cdc_export.exports e on e.job = j.id
where j.status = 'committed' and e.status = 'completed' and e.published_at is null
  and (e.destination_id = $1 or j.database_id <> (select cdc_export.database_id()))
order by e.finished_at
limit 1000
