-- store.files.get
-- $1 uuid: the job
-- $2 text: the dataset
select
  -- include files/columns.sql
from cdc_export.exports e
join cdc_export.jobs j on j.id = e.job
where e.job = $1 and e.dataset = $2 and e.status = 'completed'
