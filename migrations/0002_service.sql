-- The service's tables: jobs, keys, schedules, deliveries and the demo's table. The tables of change capture, in
-- crates/cdc-capture/schema.sql, come before them.
--
-- A table and a view are in the first schema of the role's search_path, normally public, because people read them:
-- users (the demo's) and exports.
--
-- Beside the words in braces that crates/cdc-capture/schema.sql has, one is replaced here: makes_users, by true if a
-- dataset reads the demo's table and no table has its name, else by false.

-- Jobs ------------------------------------------------------------------------

-- The destinations, folders or buckets, that processes use, by the id that each destination holds.
create table cdc_export.destinations (
  id uuid primary key,
  -- When a process that uses it last recorded that. It does so at its start and end, each hour, and every ten seconds
  -- while it claims jobs.
  seen_at timestamptz not null
);

-- A lane is one consumer's line of exports of one dataset. Whoever adds an export to a lane locks its row, so that the
-- order of the lane's exports is the order of commits. Ad-hoc exports have a row too, for each dataset, under the empty
-- consumer: a lock only.
create table cdc_export.lanes (
  consumer_id text collate "C" not null,
  dataset text collate "C" not null,
  last_sequence bigint not null, -- the lane_sequence of the lane's latest job
  last_number bigint not null default 0, -- the number of the lane's latest published export
  -- The lane's latest job when an operator removed its consumer. A later job brings it back, and earlier ones don't
  -- count for its state. Null: it was never removed.
  removed_sequence bigint,
  -- The number of the lane's last published export when its position was last removed, alone or with its consumer.
  -- Exports that were loaded before don't count any more. Null: it was never removed.
  removed_number bigint,
  -- The number of the latest export that the consumer acknowledged: it has loaded all exports up to that one. Null:
  -- the consumer never acknowledges. No constraint compares it with last_number: after a partial restore or a change
  -- by hand it may be larger, and the next export must get its number all the same.
  acknowledged bigint,
  acknowledged_at timestamptz,
  primary key (consumer_id, dataset)
);

-- The datasets that processes have, and their tables. A name that has exports or keys never passes to another table
-- by a pattern.
create table cdc_export.datasets (
  name text collate "C" primary key,
  schema_name text not null,
  table_name text not null,
  seen_at timestamptz not null -- when a process that has it last recorded that, to within an hour
);

-- A job: what one request asked for, of one dataset or several. All its exports are read at one snapshot, and completed
-- in one transaction or not at all. The table is the queue.
create table cdc_export.jobs (
  id uuid primary key,

  -- The request.
  consumer_id text collate "C", -- null: an ad-hoc export
  export_type text not null check (export_type in ('full', 'incremental', 'delta')),
  -- `job::datasets::DatasetsRequest` in JSON: what a request with `datasets` asked for, and the datasets that were left
  -- out. Null: the request was for one dataset.
  datasets jsonb,
  format text not null,
  compression text not null default 'none',
  -- The size at which a file ends and the next one begins; null: one file.
  max_file_bytes bigint check (max_file_bytes > 0),
  selection jsonb, -- the filter, columns and limit of an ad-hoc export; null: all of the dataset
  skip_empty boolean, -- true: make no file if there is nothing to export; null: as the dataset has it
  heals boolean not null default false, -- true: where only a full export goes on, make one in place of another one
  retry_of uuid, -- the job that this one repeats
  idempotency_key text collate "C",
  key_prefix text collate "C", -- of the key that asked for the job; null: none
  -- The job's span in a trace, in the form of the header traceparent: from the request, else from the first attempt.
  traceparent text,

  -- The database that the job was made in. In a copy of that database, or after a restore, the job's files may belong
  -- to another database.
  database_id text collate "C" not null default cdc_export.database_id(),
  timeline text collate "C" not null default cdc_export.timeline(),
  -- Identifies the run of the server that made the job. Only compared for equality, since clocks may be set.
  server_started_at timestamptz not null default pg_catalog.pg_postmaster_start_time(),

  -- The queue.
  -- committed: the positions were saved and the files are durable. Clients see `processing` until each file has its
  -- final name. skipped: the positions were saved, and there is no file. Clients see `completed`, with `skipped`.
  status text not null default 'pending'
    check (status in ('pending', 'processing', 'committed', 'completed', 'skipped', 'failed', 'cancelled')),
  open_exports integer not null check (open_exports >= 0), -- exports that are neither published nor ended otherwise
  attempt integer not null default 0 check (attempt >= 0),
  max_attempts integer not null check (max_attempts > 0),
  gave_way integer not null default 0, -- how many attempts ended for sessions that waited for their locks
  run_at timestamptz not null default clock_timestamp(), -- a pending job is not claimed earlier
  -- Workers claim jobs in this order. The first job of a consumer that has none gets a turn before the second job of
  -- a consumer that waits.
  turn timestamptz not null,
  destination_id uuid, -- the destination of the process that accepted the job, then of the one that runs it
  lease_token uuid, -- the right to this attempt; it stays when the attempt has committed
  lease_owner text, -- the process that has the lease, for people
  lease_expires_at timestamptz,
  -- The name of the session that commits a running attempt. A worker whose session has ended has ended too, or will
  -- not commit.
  session text,
  cancel_requested_at timestamptz,
  purge_hold pg_snapshot, -- the purge keeps what this snapshot didn't see: the attempt may read it yet
  error_code text,
  error_detail text,
  error_dataset text collate "C", -- the dataset that the error is of; null: it concerns all

  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,

  constraint selected_ad_hoc check (selection is null or consumer_id is null),
  constraint lease_is_processing check (
    (status = 'processing') = (lease_expires_at is not null)
    and (lease_expires_at is null or lease_token is not null and lease_owner is not null)),
  constraint ended_has_no_open_export
    check ((open_exports = 0) = (status in ('completed', 'skipped', 'failed', 'cancelled'))),
  constraint failed_has_a_code check (status <> 'failed' or error_code is not null)
);

-- One key must not learn the idempotency keys of another key's ad-hoc exports. A consumer id does not begin with
-- a colon.
create unique index jobs_idempotency_key
  on cdc_export.jobs (coalesce(consumer_id, ':' || key_prefix, ''), idempotency_key) where idempotency_key is not null;
create index jobs_turn on cdc_export.jobs (turn, created_at) where status = 'pending';
create index jobs_paused on cdc_export.jobs (run_at) where status = 'pending';
-- The open jobs that a key asked for, those of each consumer in the order of their turns.
create index jobs_open_of_key on cdc_export.jobs (coalesce(key_prefix, ''), coalesce(consumer_id, ''), turn)
  where status in ('pending', 'processing');
-- The jobs that run, and those whose files wait for their final names.
create index jobs_running on cdc_export.jobs (status, lease_expires_at) where status in ('processing', 'committed');
-- The lists of jobs. The key of an entry is all that a list may be filtered by, as one text.
create index jobs_by_kind on cdc_export.jobs ((export_type || ' ' || status), id);
create index jobs_by_consumer on cdc_export.jobs ((consumer_id || ' ' || export_type || ' ' || status), id);

-- An export: the part of a job for one dataset.
create table cdc_export.exports (
  job uuid not null references cdc_export.jobs (id) on delete cascade,
  dataset text collate "C" not null,
  consumer_id text collate "C", -- the job's
  lane_sequence bigint, -- the export's place in its lane
  -- The type of the export, which is another one than the job's if it was healed.
  export_type text not null check (export_type in ('full', 'incremental', 'delta')),
  -- True: the request said which export was loaded last, in "after". The service checked that when it took the
  -- request.
  has_after boolean not null default false,
  after_job uuid, -- the job of that export; null if has_after: none was loaded yet
  after_sha256 text, -- the SHA-256 that the request gave of that export; null: it gave none
  output_filename text collate "C" not null, -- the final name; those of several files are made of it

  -- open: as its job. completed: the position was saved and the files are durable. They get their final names after
  -- that, in published_at.
  status text not null default 'open' check (status in ('open', 'completed', 'skipped', 'failed', 'cancelled')),
  progress smallint not null default 0 check (progress between 0 and 100), -- in percent
  rows_expected bigint check (rows_expected >= 0), -- of a running export of changes; null: they were not counted
  rows_exported bigint not null default 0, -- in all files; of one that runs, so far
  bytes_written bigint not null default 0, -- of all files, compressed; of one that runs, so far

  -- The result.
  destination_id uuid, -- the destination that has the files
  staged_name text, -- the hidden name of the first file, which has the token of the attempt that completed the job
  -- The SHA-256 of the file. For several files, that of the list of theirs: 64 hexadecimal digits and a line break
  -- each.
  sha256 text,
  -- The manifest's members about the files' columns: {"columns": [{"name": "id", "type": "bigint", "wire": "binary"},
  -- ...], "key": ["id"], "table": ..., "snapshot": ...}.
  file_columns jsonb,
  columns_hash text, -- MD5 of the names and types of the file's columns
  marker_seen uuid, -- the job of the export that the lane's marker at the destination named when the attempt began
  -- The manifest's text, which the publisher saves before anybody sees it; null: not committed, or ad hoc.
  manifest text,
  digest text collate "C", -- of the manifest
  published_at timestamptz, -- when the files got their final names
  number bigint, -- the place among the lane's published exports, from 1
  file_removed_at timestamptz, -- when the files were removed, on request or by retention; the row stays

  -- The report.
  watermark_from timestamptz, -- the consumer's watermark when the attempt began
  watermark_to timestamptz, -- the watermark that the export saved
  -- `job::ExportReport` in JSON: `continuity`, `lateRows` and others, as API.md explains them. A member that is absent
  -- is null, 0 or false.
  report jsonb,

  finished_at timestamptz, -- when it was completed, or ended otherwise

  primary key (job, dataset),
  constraint lane_has_a_consumer check ((consumer_id is null) = (lane_sequence is null)),
  constraint after_is_a_consumers check (not has_after or consumer_id is not null),
  constraint after_is_said check (after_job is null or has_after),
  constraint after_has_a_job check (after_sha256 is null or after_job is not null),
  constraint finished_is_not_open check ((finished_at is null) = (status = 'open')),
  constraint completed_has_a_file check (
    (status = 'completed') = (staged_name is not null and sha256 is not null and destination_id is not null)),
  constraint published_is_completed check (published_at is null or status = 'completed'),
  constraint published_has_a_number check (number is not null or published_at is null or consumer_id is null),
  constraint removed_is_published check (file_removed_at is null or published_at is not null)
);

create unique index exports_output_filename on cdc_export.exports (lower(output_filename));

-- A lane: its exports in their order, those that are neither published nor ended otherwise, those that succeeded, and
-- the published ones by their numbers.
create unique index exports_lane on cdc_export.exports (consumer_id, dataset, lane_sequence);
create index exports_open on cdc_export.exports (consumer_id, dataset, lane_sequence)
  where published_at is null and status in ('open', 'completed');
create index exports_succeeded on cdc_export.exports (consumer_id, dataset, lane_sequence)
  where status in ('completed', 'skipped');
create unique index exports_number on cdc_export.exports (consumer_id, dataset, number) where number is not null;

-- The lists of jobs that have an export of a dataset, as the lists of jobs above. One without a published file is open.
create index exports_by_dataset on cdc_export.exports (
  (dataset || ' ' || export_type || ' '
    || case when status = 'completed' and published_at is null then 'open' else status end),
  job);
create index exports_by_lane on cdc_export.exports (
  (consumer_id || ' ' || dataset || ' ' || export_type || ' '
    || case when status = 'completed' and published_at is null then 'open' else status end),
  job);

-- Retention, lane by lane: the ended exports, those with a file at a destination, and those without one.
create index exports_ended on cdc_export.exports (coalesce(consumer_id, ''), dataset, finished_at desc, job desc)
  where finished_at is not null;
create index exports_with_file on cdc_export.exports
  (destination_id, coalesce(consumer_id, ''), dataset, finished_at desc, job desc)
  where published_at is not null and file_removed_at is null;
create index exports_without_file on cdc_export.exports
  (coalesce(consumer_id, ''), dataset, finished_at desc, job desc)
  where finished_at is not null and (status <> 'completed' or file_removed_at is not null);

-- The exports as people read them, with what they have of their jobs. Of an export whose files have no final names yet
-- the status is `processing`.
create view {schema}.exports as
select e.job, e.dataset, e.consumer_id, e.export_type,
  case
    when e.status = 'open' then j.status
    when e.status = 'completed' and e.published_at is null then 'processing'
    else e.status end as status,
  e.progress, e.rows_exported, e.bytes_written, e.output_filename, e.number, e.report,
  case when e.status in ('open', 'failed') then j.error_code end as error_code,
  case when e.status in ('open', 'failed') then j.error_detail end as error_detail,
  -- The dataset that the error is of; null: it concerns all of the job.
  case when e.status in ('open', 'failed') then j.error_dataset end as error_dataset,
  j.attempt, j.lease_owner, e.watermark_from, e.watermark_to,
  j.created_at, j.started_at, e.finished_at, e.published_at, e.file_removed_at
from cdc_export.exports e
join cdc_export.jobs j on j.id = e.job;
insert into cdc_export.owned (schema_name, table_name) values ({schema_name}, 'exports');

create or replace view cdc_export.running_exports as
select e.consumer_id, e.dataset, j.purge_hold, j.lease_expires_at
from cdc_export.jobs j
join cdc_export.exports e on e.job = j.id
where j.status = 'processing';

-- The sessions of processes: the destination of each, and when the process last used the session. A role doesn't see
-- when another role's session was used. That one counts as in use, and `looked_at` is null.
create view cdc_export.process_sessions as
select substring(a.application_name from ' at ([0-9a-f]{32})$')::uuid as destination_id,
  coalesce(a.state_change, statement_timestamp()) as used_at, a.state_change as looked_at
from pg_stat_activity a
where a.datname = current_database() and a.application_name ~ '^cdc-export .* at [0-9a-f]{32}$'
  -- Any role may give its sessions such names.
  and has_table_privilege(a.usesysid, 'cdc_export.destinations', 'update');

-- The last moment. `is_past`: a transaction that was under way then has ended since. It may have written to the change
-- log before.
create view cdc_export.last_moment as
select last.at, last.log_sequence, last.open_xids,
  exists (
    select from unnest(last.open_xids) xid where pg_visible_in_snapshot(xid, pg_current_snapshot())) as is_past
from (select m.* from cdc_export.moments m order by m.next_xid desc, m.at desc limit 1) last;

-- The work that waits for processes, of which each asks once a second. A view, because a server may log each statement.
create view cdc_export.work as
-- Each `order by` makes Postgres use an index.
select (select j.turn from cdc_export.jobs j
   where j.status = 'pending' order by j.turn, j.created_at limit 1) is not null
  or (select j.lease_expires_at from cdc_export.jobs j
      where j.status = 'processing' order by j.lease_expires_at limit 1) is not null as has_open,
  (select j.status from cdc_export.jobs j
   where j.status = 'committed' order by j.lease_expires_at limit 1) is not null as has_unpublished,
  -- The destinations that no process uses.
  array(
    select d.id from cdc_export.destinations d
    where d.id not in (
      select session.destination_id from cdc_export.process_sessions session
      where session.used_at between clock_timestamp() - interval '15 seconds' and clock_timestamp())) as unused,
  -- True if something may have been committed since the last moment that the change log has.
  coalesce(log.sequence <> last.log_sequence or last.is_past, true) as log_has_moved,
  log.sequence as log_sequence, statement_timestamp() as looked_at
from (
    select coalesce(pg_sequence_last_value(pg_get_serial_sequence('cdc_export.change_log', 'sequence')::regclass), 0)
      as sequence) log
left join cdc_export.last_moment last on true;

-- A terminal status is final. One exception: a completed export without a published file, which no client was told is
-- completed, may yet fail.
create function cdc_export.keep_terminal() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if new.status <> old.status then
    raise exception 'job % is %, which is final', to_jsonb(old) ->> tg_argv[0], old.status
      using errcode = 'restrict_violation';
  end if;
  return new;
end $$;

create trigger jobs_keep_terminal before update of status on cdc_export.jobs
  for each row when (old.status in ('completed', 'skipped', 'failed', 'cancelled'))
  execute function cdc_export.keep_terminal('id');
create trigger exports_keep_terminal before update of status on cdc_export.exports
  for each row when (old.status in ('skipped', 'failed', 'cancelled') or old.published_at is not null)
  execute function cdc_export.keep_terminal('job');

-- A job goes with its last export.
create function cdc_export.forget_jobs() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  -- If two transactions delete the last two exports of a job, the second one waits here, and finds no export left.
  perform from cdc_export.jobs j where j.id in (select gone.job from gone) order by j.id for update;
  delete from cdc_export.jobs j
  where j.id in (select gone.job from gone) and not exists (select from cdc_export.exports e where e.job = j.id);
  return null;
end $$;

create trigger exports_forget_jobs after delete on cdc_export.exports
  referencing old table as gone for each statement execute function cdc_export.forget_jobs();

-- The files of a completed export, one row for each.
create table cdc_export.files (
  job uuid not null,
  dataset text collate "C" not null,
  part integer not null check (part > 0), -- the place among the export's files, from 1
  staged_name text collate "C" not null, -- the hidden name; the final one is made of exports.output_filename
  -- The place of the file at its destination: {"folder": {"inode": "...", "modifiedNs": "..."}}, numbers as texts.
  place jsonb not null,
  location text, -- the URL of the published file; null: not published
  bytes bigint not null check (bytes >= 0),
  rows bigint not null check (rows >= 0),
  sha256 text collate "C" not null,
  primary key (job, dataset, part),
  foreign key (job, dataset) references cdc_export.exports (job, dataset) on delete cascade
);

-- The files of each completed export, as one array in the order of their parts.
create view cdc_export.export_files as
select job, dataset, jsonb_agg(
  jsonb_build_object('name', staged_name, 'place', place, 'location', location,
    'bytes', bytes, 'rows', rows, 'sha256', sha256)
  order by part) as files
from cdc_export.files
group by job, dataset;

-- The datasets whose tables were locked when an attempt last needed them. No job with one of them is claimed until that
-- time. The first attempt after it sets the time on, and a successful one removes the row.
create table cdc_export.locked_datasets (
  name text collate "C" primary key,
  until timestamptz not null
);

-- Callers, schedules, receivers -----------------------------------------------

-- API keys. Only the SHA-256 of a key is stored: 256 random bits need neither salt nor a slow hash.
create table cdc_export.keys (
  name text not null,
  prefix text collate "C" primary key, -- the part of the key that people see
  hash bytea not null check (octet_length(hash) = 32),
  consumers text[] check (cardinality(consumers) > 0), -- null: all
  scopes text[] not null check (cardinality(scopes) > 0 and scopes <@ array['export:read', 'export:write', 'admin']),
  datasets text[] check (datasets is null or cardinality(datasets) > 0 and 'admin' <> all (scopes)), -- null: all
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz, -- null: never
  revoked_at timestamptz,
  last_used_at timestamptz -- within a minute or so
);
-- A name is free again once its key is revoked.
create unique index keys_name on cdc_export.keys (name) where revoked_at is null;

-- The progress of the schedules. The operator's file defines them; a row is made when the service first reads a
-- schedule.
create table cdc_export.schedules (
  name text primary key,
  slot timestamptz, -- the last slot that was used, by a job or because it was skipped; null: none yet
  timing text not null, -- the interval or cron expression that the file had last
  last_job uuid, -- the last job that was made for it; retention may have removed that job since
  last_run_at timestamptz,
  skipped bigint not null default 0, -- slots since last_run_at whose lane was busy
  skipped_at timestamptz,
  refused text, -- why the slot that is due has no job yet; null: none is due, or nobody has tried
  refused_at timestamptz
);

-- Deliveries of events: a row for each end of a job and each receiver that takes such events, made in the transaction
-- that ends it.
create table cdc_export.deliveries (
  id uuid primary key, -- the event's id too: the same at each attempt
  job uuid not null references cdc_export.jobs (id) on delete cascade,
  endpoint text not null collate "C", -- the receiver's name in the operator's file
  event text not null collate "C" check (event in ('completed', 'skipped', 'failed', 'cancelled')),
  created_at timestamptz not null default clock_timestamp(),
  -- Attempts since the delivery was made, or last requested by hand.
  attempt integer not null default 0 check (attempt >= 0),
  -- When it is due. A process that claims it moves this on, so that another process takes it over if the first one
  -- vanishes. Infinity: never.
  run_at timestamptz not null default clock_timestamp(),
  -- When run_at was set; later than now: the clock was set back since.
  rescheduled_at timestamptz not null default clock_timestamp(),
  manually_requested boolean not null default false, -- somebody asked for it again, and no attempt has ended since
  delivered_at timestamptz,
  dead_at timestamptz,
  last_status smallint, -- of the last answer; null: there was none
  last_error text,
  unique (job, endpoint)
);
-- The deliveries that are due; a monitor counts them, too.
create index deliveries_open on cdc_export.deliveries (endpoint, run_at) where delivered_at is null;
-- A page of those that wait or are dead, however many others there are.
create index deliveries_undelivered on cdc_export.deliveries (id) where delivered_at is null;
-- A page of one receiver's deliveries, also of a receiver that has none.
create index deliveries_of_endpoint on cdc_export.deliveries (endpoint, id);

-- The demo --------------------------------------------------------------------

-- Sets operation_type of the demo's users: what the last write of a row did to it.
create function cdc_export.users_operation_type() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  new.operation_type := case
    when new.is_deleted then 'DELETE'
    when tg_op = 'INSERT' and new.created_at = new.updated_at then 'INSERT'
    else 'UPDATE' end;
  return new;
end $$;

do $$
begin
  if not {makes_users} then
    return;
  end if;
  create table {schema}.users (
    id bigserial primary key,
    name varchar(255) not null,
    email varchar(255) not null unique,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    is_deleted boolean not null default false,
    operation_type varchar(10) not null default 'INSERT'
  );
  create index idx_users_updated_at on {schema}.users (updated_at);
  create trigger users_operation_type before insert or update on {schema}.users
    for each row execute function cdc_export.users_operation_type();
  insert into cdc_export.owned (schema_name, table_name) values ({schema_name}, 'users');
end $$;
