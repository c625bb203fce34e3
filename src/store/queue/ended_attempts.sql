-- store.queue.ended_attempts
-- Returns the left-over hidden files by their positions in the parameters, with true if the file may be removed.
-- $1 uuid[]: the job of each file
-- $2 uuid[]: the token of each
-- $3 text[]: the identity of the database of each
-- $4 boolean[]: true for a publisher's marker
select a.place,
  -- A job that the database doesn't know may be that of a clone, which has the same identity. A marker of a committed
  -- job gets its final name soon.
  j.id is not null and (not a.is_marker or j.status <> 'committed') as is_removable
from unnest($1, $2, $3, $4) with ordinality as a (id, token, database, is_marker, place)
left join cdc_export.jobs j on j.id = a.id
where a.database = (select cdc_export.database_id())
  -- The attempt neither runs nor completed the job.
  and j.lease_token is distinct from a.token
  and not exists (
    select from cdc_export.exports e
    where e.job = j.id and e.staged_name like '%' || a.token || '%')
