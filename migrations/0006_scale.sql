-- Statements whose cost does not grow with what they don't need.

-- A page of one receiver's deliveries, also of a receiver that has none.
create index deliveries_of_endpoint on cdc_export.deliveries (endpoint, id);

-- Retention, lane by lane: the ended jobs, those with a file at a destination, and those without one.
drop index {schema}.exports_ended;
drop index {schema}.exports_with_file;
drop index {schema}.exports_without_file;
create index exports_ended on {schema}.exports (coalesce(consumer_id, ''), dataset, finished_at desc, id desc)
  where finished_at is not null;
create index exports_with_file on {schema}.exports
  (destination_id, coalesce(consumer_id, ''), dataset, finished_at desc, id desc)
  where status = 'completed' and published_at is not null and file_removed_at is null;
create index exports_without_file on {schema}.exports
  (coalesce(consumer_id, ''), dataset, finished_at desc, id desc)
  where finished_at is not null and (status <> 'completed' or file_removed_at is not null);

-- When every byte of the file was sent, or an address of it was handed out. Null: not yet; readers of a folder are not
-- seen.
alter table cdc_export.files add column fetched_at timestamptz;

-- The manifests of a lane that retention has not removed.
create index exports_with_manifest on {schema}.exports (consumer_id, dataset, number)
  where number is not null and manifest is not null;

-- The session of a running attempt. A worker whose session has ended has ended too, or will not commit.
alter table {schema}.exports add column session_pid integer, add column session_started timestamptz;
