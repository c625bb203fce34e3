-- The tables that tests/explain.sh explains statements on: 100,000 exports in 1,000 lanes, a pending job in each lane
-- but those of c1, which runs one, and of c2, which has one that is committed and not published.
insert into exports (
  id, consumer_id, dataset, lane_sequence, export_type, format, status, attempt, max_attempts, output_filename, created_at,
  run_at, started_at, finished_at, destination_id, staged_name, sha256, published_at, number)
select gen_random_uuid(), 'c' || n % 1000, 'users', n / 1000 + 1, 'delta', 'csv', 'completed', 1, 5, 'f' || n, at, at, at, at,
  '00000000-0000-0000-0000-00000000000d', 'staged', repeat('a', 64), at, n / 1000 + 1
from generate_series(0, 99999) n, lateral (select now() - (100000 - n) * interval '10 seconds' as at) times;

insert into exports (
  id, consumer_id, dataset, lane_sequence, export_type, format, status, attempt, max_attempts, output_filename, destination_id,
  started_at, finished_at, lease_token, lease_owner, lease_expires_at, staged_name, sha256)
select id, consumer, 'users', 101, 'delta', 'csv', status, 1, 5, id::text, '00000000-0000-0000-0000-00000000000d', now(),
  case status when 'completed' then now() end, case status when 'processing' then id end,
  case status when 'processing' then 'worker' end, case status when 'processing' then now() + interval '1 hour' end,
  case status when 'completed' then 'staged' end, case status when 'completed' then repeat('a', 64) end
from (values
  ('00000000-0000-0000-0000-000000000001'::uuid, 'c1', 'processing'),
  ('00000000-0000-0000-0000-000000000002'::uuid, 'c2', 'completed')) job (id, consumer, status);

insert into exports (
  id, consumer_id, dataset, lane_sequence, export_type, format, max_attempts, output_filename, destination_id, turn)
select gen_random_uuid(), 'c' || n, 'users', 102, 'delta', 'csv', 5, 'p' || n, '00000000-0000-0000-0000-00000000000d',
  now() - n * interval '1 millisecond'
from generate_series(0, 999) n;

insert into cdc_export.files (job, part, staged_name, place, bytes, rows, sha256)
select id, 1, 'staged', '{"folder": {"inode": "1", "modifiedNs": "1"}}', 0, 0, sha256 from exports where status = 'completed';
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
