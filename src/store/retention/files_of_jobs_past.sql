-- store.retention.files_of_jobs_past
-- Returns the files of jobs past the retention of jobs, including files of another database.
-- $1 text[]: the consumers of the lanes; the empty one has the ad-hoc exports
-- $2 text[]: their datasets
-- $3 bigint: the number of kept ended jobs of a lane; null for no limit
-- $4 float8: the seconds for which a job is kept; null for no limit
-- $5 timestamptz: the present time; null: no clock is believed, and nothing is too old
-- $6 uuid: the destination
-- $7 bigint: the limit on returned files
-- $8 float8: the seconds for which an unacknowledged export is kept
-- $9 boolean: true for files of this database alone; here false
-- include retention/bounds_of_jobs.sql
select
  -- include files/columns.sql
  ,
  case when e.number > e.acknowledged then e.number end as unacknowledged
-- include retention/files_in_bounds.sql
