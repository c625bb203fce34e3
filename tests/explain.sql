-- The tables that tests/explain.sh explains statements on: 100,000 exports in 1,000 lanes, a pending job in each lane
-- but those of c1, which runs one, and of c2, which has one that is committed and not published.
insert into cdc_export.jobs (
  id, consumer_id, export_type, format, status, open_exports, attempt, max_attempts, created_at, run_at, turn, started_at)
select ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'c' || n % 1000, 'delta', 'csv', 'completed', 0, 1, 5,
  at, at, at, at
from generate_series(0, 99999) n, lateral (select now() - (100000 - n) * interval '10 seconds' as at) times;
insert into cdc_export.exports (
  job, dataset, consumer_id, lane_sequence, export_type, output_filename, status, destination_id, staged_name, sha256,
  published_at, number, finished_at)
select id, 'users', consumer_id, place, 'delta', id::text, 'completed', '00000000-0000-0000-0000-00000000000d', 'staged',
  repeat('a', 64), created_at, place, created_at
from (select *, row_number() over (partition by consumer_id order by created_at) as place from cdc_export.jobs) jobs;

insert into cdc_export.jobs (
  id, consumer_id, export_type, format, status, open_exports, attempt, max_attempts, turn, destination_id, started_at,
  lease_token, lease_owner, lease_expires_at)
select id, consumer, 'delta', 'csv', status, 1, 1, 5, now(), '00000000-0000-0000-0000-00000000000d', now(), id, 'worker',
  case status when 'processing' then now() + interval '1 hour' end
from (values
  ('00000000-0000-0000-0000-000000000001'::uuid, 'c1', 'processing'),
  ('00000000-0000-0000-0000-000000000002'::uuid, 'c2', 'committed')) job (id, consumer, status);
insert into cdc_export.exports (
  job, dataset, consumer_id, lane_sequence, export_type, output_filename, status, destination_id, staged_name, sha256,
  finished_at)
select id, 'users', consumer_id, 101, 'delta', id::text, case status when 'committed' then 'completed' else 'open' end,
  case status when 'committed' then destination_id end, case status when 'committed' then 'staged' end,
  case status when 'committed' then repeat('a', 64) end, case status when 'committed' then now() end
from cdc_export.jobs where open_exports = 1;

insert into cdc_export.jobs (
  id, consumer_id, export_type, format, open_exports, max_attempts, turn, destination_id)
select gen_random_uuid(), 'c' || n, 'delta', 'csv', 1, 5, now() - n * interval '1 millisecond',
  '00000000-0000-0000-0000-00000000000d'
from generate_series(0, 999) n;
insert into cdc_export.exports (job, dataset, consumer_id, lane_sequence, export_type, output_filename)
select id, 'users', consumer_id, 102, 'delta', id::text from cdc_export.jobs where status = 'pending';

insert into cdc_export.files (job, dataset, part, staged_name, place, bytes, rows, sha256)
select job, dataset, 1, 'staged', '{"folder": {"inode": "1", "modifiedNs": "1"}}', 0, 0, sha256
from cdc_export.exports where status = 'completed';
insert into cdc_export.lanes (consumer_id, dataset, last_sequence, last_number, acknowledged)
select 'c' || n, 'users', 102, 100, case n % 2 when 0 then 98 end from generate_series(0, 999) n;
insert into cdc_export.destinations (id, seen_at) values ('00000000-0000-0000-0000-00000000000d', now());
insert into watermarks (
  consumer_id, dataset, last_exported_at, saved_last_exported_at, version, live_snapshot, deletions_snapshot, saved_at,
  log_sequence, deletions_saved_at, deletions_log_sequence)
select 'c' || n, 'users', now(), now(), 1, pg_current_snapshot(), pg_current_snapshot(), now(), 0, now(), 0
from generate_series(0, 999) n;
update users set updated_at = now() where id % 10 = 0;
vacuum analyze;
