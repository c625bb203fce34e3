-- store.files.get
-- Returns the files of a completed job.
-- $1 uuid: the job
select
  -- include files/columns.sql
from exports e
where e.id = $1 and e.status = 'completed'
