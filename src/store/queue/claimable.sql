-- The condition of a pending job `r` that a process may claim once its time has come. A batch is claimed by its first
-- member, if each of its members is ready.
-- The parameters $1 to $4 are those of `queue/claim.sql`.
r.turn < 'infinity' and
-- include queue/ready.sql
and (r.batch_id is null or not exists (
  select from (select r.batch_id as id) batch
  cross join lateral (
    select from exports r
    where r.batch_id = batch.id and r.turn = 'infinity' and not (
      -- include queue/ready.sql
    )) waiting))
