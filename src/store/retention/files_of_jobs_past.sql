-- store.retention.files_of_jobs_past
-- Returns the files of jobs past the retention of jobs, including files of another database.
-- $1 text[]: the consumers; the empty one has the ad-hoc exports
-- $2 bigint: the number of kept ended jobs of a consumer; null for no limit
-- $3 float8: the seconds for which a job is kept; null for no limit
-- $4 uuid: the destination
-- $5 bigint: the limit on returned files
-- $6 float8: the seconds for which an unacknowledged export is kept
-- $7 boolean: true for files of this database alone; here false
-- include retention/bounds_of_jobs.sql
select
  -- include files/columns.sql
  ,
  (select e.number from cdc_export.lanes l
   where l.consumer_id = e.consumer_id and l.dataset = e.dataset and e.number > l.acknowledged) as unacknowledged
-- include retention/files_in_bounds.sql
