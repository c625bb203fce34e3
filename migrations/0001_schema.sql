-- The service's schema.
--
-- Three tables are in the first schema of the role's search_path, normally public, because people read them: users (the
-- demo's), watermarks and exports. All others are in the schema cdc_export, which exists before this file runs.
--
-- The service replaces three words, each in braces, before it runs a migration:
--   schema       the first schema of the search_path, as an identifier
--   schema_name  the same, as a string
--   makes_users  true if a dataset reads the demo's table and no table has its name, else false
-- They stand here without braces, because a schema's name may have a line break, which would end a comment.
--
-- From here on a migration only adds: the previous release runs beside the next one, and an operator may go back to it.

-- Identity of the database ----------------------------------------------------

-- The identity of this database: its cluster's number and its own. A copy of the database in another cluster has
-- another identity.
create function cdc_export.database_id() returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select lpad(to_hex(c.system_identifier), 16, '0') || '-' || d.oid
  from pg_control_system() c, pg_database d where d.datname = current_database()
$$;

-- The timeline that the cluster writes on; null on a standby.
create function cdc_export.timeline() returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_lsn()), 8) end
$$;

-- The tables outside of cdc_export that this service made. Every other table outside belongs to somebody else.
create table cdc_export.owned (
  schema_name text not null,
  table_name text not null,
  primary key (schema_name, table_name)
);

-- Locks: a session locks the row of a task that only one session may do at a time. Not an advisory lock, which every
-- role that may connect can take.
create table cdc_export.locks (name text primary key);
insert into cdc_export.locks values ('purge'), ('track');

-- Jobs ------------------------------------------------------------------------

-- The destinations, folders or buckets, that processes use, by the id that each destination holds.
create table cdc_export.destinations (
  id uuid primary key,
  seen_at timestamptz not null -- when a process that uses it last recorded that, to within ten seconds
);

-- A lane is one consumer's line of jobs for one dataset. Whoever adds a job to a lane locks its row, so that the order
-- of the lane's jobs is the order of commits. Ad-hoc exports have a row too, for each dataset, under the empty
-- consumer: a lock only.
create table cdc_export.lanes (
  consumer_id text collate "C" not null,
  dataset text collate "C" not null,
  last_sequence bigint not null, -- the lane_sequence of the lane's latest job
  last_number bigint not null default 0, -- the number of the lane's latest published export
  -- The number of the latest export that the consumer acknowledged: it has loaded all exports up to that one. Null: the
  -- consumer never acknowledges. No constraint compares it with last_number: after a partial restore or a change by
  -- hand it may be larger, and the next export must get its number all the same.
  acknowledged bigint,
  acknowledged_at timestamptz,
  primary key (consumer_id, dataset)
);

-- A job: one export that somebody asked for. The table is the queue, too.
create table {schema}.exports (
  id uuid primary key,

  -- The request.
  consumer_id text collate "C", -- null: an ad-hoc export
  dataset text collate "C" not null,
  lane_sequence bigint, -- the job's place in its lane
  export_type text not null check (export_type in ('full', 'incremental', 'delta')),
  format text not null,
  compression text not null default 'none',
  -- The size at which a file ends and the next one begins; null: one file.
  max_file_bytes bigint check (max_file_bytes > 0),
  selection jsonb, -- the filter, columns and limit of an ad-hoc export; null: all of the dataset
  -- True: the request said which export was loaded last, in "after". The service checked that when it took the request.
  has_after boolean not null default false,
  after_job uuid, -- that export; null if has_after: none was loaded yet
  after_sha256 text, -- the SHA-256 that the request gave of that export; null: it gave none
  retry_of uuid, -- the job that this one repeats
  idempotency_key text collate "C",
  -- The job's span in a trace, in the form of the header traceparent: from the request, else from the first attempt.
  traceparent text,

  -- The database that the job was made in. In a copy of that database, or after a restore, the job's file may belong to
  -- another database.
  database_id text collate "C" not null default cdc_export.database_id(),
  timeline text collate "C" not null default cdc_export.timeline(),
  -- Identifies the run of the server that made the job. Only compared for equality, since clocks may be set.
  server_started_at timestamptz not null default pg_catalog.pg_postmaster_start_time(),

  -- The queue.
  -- completed: the position was saved and the files are durable. They get their final names after that, in published_at.
  status text not null default 'pending'
    check (status in ('pending', 'processing', 'completed', 'failed', 'cancelled')),
  progress smallint not null default 0 check (progress between 0 and 100), -- in percent
  attempt integer not null default 0 check (attempt >= 0),
  max_attempts integer not null check (max_attempts > 0),
  run_at timestamptz not null default clock_timestamp(), -- a pending job is not claimed earlier
  lease_token uuid, -- the right to this attempt
  lease_owner text, -- the process that has the lease, for people
  lease_expires_at timestamptz,
  cancel_requested_at timestamptz,
  purge_hold pg_snapshot, -- the purge keeps what this snapshot didn't see: the attempt may read it yet
  marker_seen uuid, -- the export that the lane's marker at the destination named when the attempt began
  error_code text,
  error_detail text,

  -- The result.
  rows_exported bigint not null default 0, -- in all files; of a job that runs, so far
  bytes_written bigint not null default 0, -- of all files, compressed; of a job that runs, so far
  output_filename text collate "C" not null, -- the final name; those of several files are made of it
  destination_id uuid, -- the destination that has the files
  staged_name text, -- the hidden name of the first file, which has the token of the attempt that completed the job
  -- Of the file. Of several files, it is the SHA-256 of the list of theirs: 64 hexadecimal digits and a line break each.
  sha256 text,
  -- What the manifest says of the files' columns: {"columns": [{"name": "id", "type": "bigint", "wire": "binary"}, ...],
  -- "key": ["id"], "table": ..., "snapshot": ...}.
  file_columns jsonb,
  columns_hash text, -- MD5 of the names and types of the file's columns
  schema_changed boolean, -- whether these differ from those of the lane's last export
  -- The manifest's text, which the publisher saves before anybody sees it; null: not committed, or ad hoc.
  manifest text,
  digest text collate "C", -- of the manifest
  published_at timestamptz, -- when the files got their final names
  number bigint, -- the place among the lane's published exports, from 1
  file_removed_at timestamptz, -- when the files were removed, on request or by retention; the row stays

  -- The report.
  watermark_from timestamptz, -- the consumer's watermark when the attempt began
  watermark_to timestamptz, -- the watermark that the export saved
  continuity text, -- the guard's word when the export ran (CHANGE-CAPTURE.md); null: it had none
  late_rows bigint, -- rows that only the log found, not their times
  key_only_deletes bigint, -- deleted rows of which only the key is known
  quiet_deletes bigint, -- deletions whose transactions asked not to be captured, since the lane's last export
  open_transactions integer, -- open transactions that had changed something: their changes are of the next export
  oldest_transaction_seconds double precision, -- the age of the oldest of them
  table_rewritten boolean, -- whether the table was rewritten since the last export, as VACUUM FULL does

  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  finished_at timestamptz,

  constraint lane_has_a_consumer check ((consumer_id is null) = (lane_sequence is null)),
  constraint selected_ad_hoc check (selection is null or consumer_id is null),
  constraint compressed_once check (format <> 'parquet' or compression = 'none'),
  constraint after_is_a_consumers check (not has_after or consumer_id is not null),
  constraint after_is_said check (after_job is null or has_after),
  constraint after_has_a_job check (after_sha256 is null or after_job is not null),
  constraint lease_is_processing check (
    (status = 'processing') = (lease_token is not null and lease_owner is not null and lease_expires_at is not null)
    and (lease_token is null) = (lease_expires_at is null) and (lease_token is null) = (lease_owner is null)),
  constraint finished_is_terminal check ((finished_at is not null) = (status in ('completed', 'failed', 'cancelled'))),
  constraint failed_has_a_code check (status <> 'failed' or error_code is not null),
  constraint completed_has_a_file check (
    (status = 'completed') = (staged_name is not null and sha256 is not null and destination_id is not null)),
  constraint published_is_completed check (published_at is null or status = 'completed'),
  constraint published_has_a_number check (number is not null or published_at is null or consumer_id is null),
  constraint removed_is_published check (file_removed_at is null or published_at is not null)
);

create unique index exports_output_filename on {schema}.exports (lower(output_filename));
create unique index exports_idempotency_key on {schema}.exports (coalesce(consumer_id, ''), idempotency_key)
  where idempotency_key is not null;

-- The queue.
create index exports_ready on {schema}.exports (run_at, created_at) where status = 'pending';
create index exports_leases on {schema}.exports (lease_expires_at) where status = 'processing';
create index exports_unpublished on {schema}.exports (destination_id)
  where status = 'completed' and published_at is null;

-- A lane: its jobs in their order, the open ones, the one that runs, those that wait for their files' names, the
-- completed ones behind however many that failed, and the published ones by their numbers.
create unique index exports_lane on {schema}.exports (consumer_id, dataset, lane_sequence);
create index exports_open_lane on {schema}.exports (consumer_id, dataset, lane_sequence)
  where status in ('pending', 'processing');
create unique index exports_one_running on {schema}.exports (consumer_id, dataset) where status = 'processing';
create index exports_unpublished_of_lane on {schema}.exports (consumer_id, dataset, lane_sequence)
  where status = 'completed' and published_at is null;
create index exports_completed on {schema}.exports (consumer_id, dataset, lane_sequence) where status = 'completed';
create unique index exports_number on {schema}.exports (consumer_id, dataset, number) where number is not null;
-- The first of a lane's published exports whose file still exists: retention forgets no job that was published after
-- it.
create index exports_number_with_file on {schema}.exports (destination_id, consumer_id, dataset, number)
  where number is not null and file_removed_at is null;

-- The lists of jobs, newest first. The key of an entry is all that a list may be filtered by, as one text: Postgres
-- can't take another index in its place and pass over everybody else's jobs. Clients see a committed job without a
-- published file as processing.
create index exports_by_kind on {schema}.exports (
  (export_type || ' ' || case when status = 'completed' and published_at is null then 'processing' else status end),
  created_at desc, id desc);
create index exports_by_dataset on {schema}.exports (
  (dataset || ' ' || export_type || ' '
    || case when status = 'completed' and published_at is null then 'processing' else status end),
  created_at desc, id desc);
create index exports_by_consumer on {schema}.exports (
  (consumer_id || ' ' || export_type || ' '
    || case when status = 'completed' and published_at is null then 'processing' else status end),
  created_at desc, id desc);
create index exports_by_lane on {schema}.exports (
  (consumer_id || ' ' || dataset || ' ' || export_type || ' '
    || case when status = 'completed' and published_at is null then 'processing' else status end),
  created_at desc, id desc);

-- Retention, consumer by consumer: the ended jobs, those with a file at a destination, and those without one.
create index exports_ended on {schema}.exports (coalesce(consumer_id, ''), finished_at desc, id desc)
  where finished_at is not null;
create index exports_with_file on {schema}.exports
  (destination_id, coalesce(consumer_id, ''), finished_at desc, id desc)
  where status = 'completed' and published_at is not null and file_removed_at is null;
create index exports_without_file on {schema}.exports (coalesce(consumer_id, ''), finished_at desc, id desc)
  where finished_at is not null and (status <> 'completed' or file_removed_at is not null);

-- A terminal status is final. One exception: a completed job without a published file, which no client was told is
-- completed, may yet fail.
create function cdc_export.exports_keep_terminal() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if new.status <> old.status
    and not (old.status = 'completed' and old.published_at is null and new.status = 'failed'
      and new.error_code = 'file_lost') then
    raise exception 'job % is %, which is final', old.id, old.status using errcode = 'restrict_violation';
  end if;
  return new;
end $$;

create trigger exports_keep_terminal before update of status on {schema}.exports
  for each row when (old.status in ('completed', 'failed', 'cancelled'))
  execute function cdc_export.exports_keep_terminal();

-- The files of a completed job, one row for each.
create table cdc_export.files (
  job uuid not null references {schema}.exports (id) on delete cascade,
  part integer not null check (part > 0), -- the place among the job's files, from 1
  staged_name text collate "C" not null, -- the hidden name; the final one is made of exports.output_filename
  -- The place of the file at its destination: {"folder": {"inode": "...", "modifiedNs": "..."}}, numbers as texts.
  place jsonb not null,
  location text, -- the URL of the published file; null: not published
  bytes bigint not null check (bytes >= 0),
  rows bigint not null check (rows >= 0),
  sha256 text collate "C" not null,
  primary key (job, part)
);

-- The files of each completed job, as one array in the order of their parts.
create view cdc_export.export_files as
select job, jsonb_agg(
  jsonb_build_object('name', staged_name, 'place', place, 'location', location,
    'bytes', bytes, 'rows', rows, 'sha256', sha256)
  order by part) as files
from cdc_export.files
group by job;

-- Positions -------------------------------------------------------------------

-- What each consumer has of a dataset: the time that people read, and the position that the service goes on from
-- (CHANGE-CAPTURE.md). An insert of consumer, time and updated_at alone is a watermark set by hand: all columns from
-- live_snapshot on are null then.
create table {schema}.watermarks (
  id bigint generated by default as identity primary key,
  consumer_id text collate "C" not null,
  dataset text collate "C" not null default 'users',
  -- Null: the consumer has a position, but no exported row had a finite time. The upper bound is what the service's
  -- calendar counts to.
  last_exported_at timestamptz check (isfinite(last_exported_at) and last_exported_at < '200000-01-01 00:00:00+00'),
  updated_at timestamptz not null default now(),
  version bigint not null default 0, -- counts the changes of the position; a commit finds it unchanged

  -- The reasons why no export can go on from a saved position.
  -- The change log was purged past it, of deletions or of everything.
  log_lost text check (log_lost in ('deletions', 'all')),
  -- The file of a committed export was lost: only a full export goes on from there.
  file_lost boolean not null default false,

  -- The consumer's position.
  live_snapshot pg_snapshot, -- live rows are delivered up to here
  deletions_snapshot pg_snapshot, -- deletions are delivered up to here; an incremental export leaves it
  -- The value of last_exported_at when the snapshots were saved. If last_exported_at differs, somebody set it by hand.
  saved_last_exported_at timestamptz,
  saved_at timestamptz, -- when live_snapshot was saved
  log_sequence bigint, -- the change log's latest sequence then; its distance from today's is how much of the log this holds
  deletions_saved_at timestamptz, -- the same two of deletions_snapshot
  deletions_log_sequence bigint,

  -- The state of the table that the guard compares later.
  cluster_id bigint, -- the system identifier of the cluster
  table_oid oid,
  relfilenode oid, -- the number of the table's file; null: a partitioned table has none
  table_columns_hash text, -- MD5 of the names and types of all of the table's columns
  -- An object: by their names the types of the columns in the files, the key, updated_at, created_at, deleted and the filter.
  column_types jsonb,
  definition_hash text, -- MD5 of the dataset's settings that decide which rows its files have
  guard_state jsonb, -- an object: what else the guard compares, by name. A missing member is not compared

  unique (consumer_id, dataset)
);

insert into cdc_export.owned (schema_name, table_name) values ({schema_name}, 'exports'), ({schema_name}, 'watermarks');

-- Change capture --------------------------------------------------------------

-- The tables whose changes triggers capture.
create table cdc_export.tracked (
  schema_name text not null,
  table_name text not null,
  key text[] not null, -- the columns whose values the triggers log
  -- An object: hashes that the guard took of the table's triggers and functions, each with the hash of those that the
  -- service put in their place. A position that has an old hash is not refused.
  renewed jsonb not null default '{}',
  primary key (schema_name, table_name)
);

-- Triggers write the keys of changed rows here, with the transaction that changed them. A consumer's position is the
-- snapshot of its last export; what that snapshot could not see has changed since. There is no check constraint:
-- Postgres compiles it anew for each statement, which took a quarter of the triggers' time, and only the triggers may
-- write here.
create table cdc_export.change_log (
  -- Orders the changes of one key; never a cursor: it is not the order of commits.
  sequence bigint generated always as identity,
  table_oid oid not null,
  xid xid8 not null default pg_current_xact_id(), -- of the top-level transaction, the same in its savepoints
  operation "char" not null, -- I: insert, U: update, D: delete, T: truncate, Q: quiet deletions
  key text collate "C", -- null of T and Q
  image text collate "C", -- of D: the last row, as Postgres writes a row; null: the row is too large
  image_columns smallint[], -- the numbers of the columns that the image has, in their order: names may change
  quiet_deletes bigint -- of Q: how many rows a statement deleted
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
-- A publication for all tables publishes deletes, and Postgres then refuses to delete rows without an identity: the purge
-- would stop. An identity of whole rows costs writers nothing. Under wal_level = logical a purge writes half as much again
-- to the WAL (500,000 rows: 125 MB and not 83); a unique index would cost each writer as much, under any wal_level.
alter table cdc_export.change_log replica identity full;
create index change_log_changes on cdc_export.change_log (table_oid, xid);
-- Each export asks whether its table was truncated: without this index it would read all of the log since its position.
create index change_log_truncates on cdc_export.change_log (table_oid, xid) where operation = 'T';

-- A TRUNCATE of the log removes the changes of all positions, so no export can go on from one. Running exports find
-- that the version of their position has changed.
create function cdc_export.log_emptied() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update {schema}.watermarks
  set live_snapshot = null, deletions_snapshot = null, log_lost = 'all', version = version + 1
  where coalesce(live_snapshot, deletions_snapshot) is not null;
  return null;
end $$;
revoke execute on function cdc_export.log_emptied() from public;
create trigger log_emptied after truncate on cdc_export.change_log
  for each statement execute function cdc_export.log_emptied();
alter table cdc_export.change_log enable always trigger log_emptied;

-- Returns the text of a row, which doesn't depend on the session's settings. Triggers that run without settings of
-- their own call it for deleted rows.
create function cdc_export.image_of(whole record) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set timezone = 'UTC'
  set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1
  set quote_all_identifiers = off set lc_monetary from current as $$
begin
  return pg_catalog.concat(whole);
end $$;

-- Splits the text of a row into the texts of its values ("Composite Type Input and Output Syntax" in Postgres's
-- documentation). Nothing between two commas is null. Callers may have any search_path, so each function is named with
-- its schema.
create function cdc_export.values_of(image text) returns text[]
language plpgsql immutable strict parallel safe as $$
declare
  part text;
  cut text[]; -- the parts of a value with commas that were read so far; null outside of such a value
  is_odd boolean;
  found text[] := '{}';
begin
  -- A comma between quotes belongs to the value: the parts around it are joined again. Each part is read once.
  foreach part in array pg_catalog.string_to_array(pg_catalog.substr(image, 2, pg_catalog.length(image) - 2), ',') loop
    is_odd := (pg_catalog.length(part) - pg_catalog.length(pg_catalog.replace(part, '"', ''))) % 2 = 1;
    if cut is not null or is_odd then
      cut := pg_catalog.array_append(cut, part);
      continue when not is_odd or pg_catalog.cardinality(cut) = 1;
      part := pg_catalog.array_to_string(cut, ',');
      cut := null;
    end if;
    found := pg_catalog.array_append(found, case
      when part = '' then null
      when pg_catalog.left(part, 1) = '"' then pg_catalog.replace(pg_catalog.replace(
        pg_catalog.substr(part, 2, pg_catalog.length(part) - 2), '""', '"'), '\\', '\')
      else part end);
  end loop;
  return found;
end $$;

-- These two look a table or a type's name up by the role's own search_path, which our sessions keep in a setting
-- (src/connection.rs). In another session it is the path that RESET would set, which is slow to read. The path that
-- these functions set ends with the call.
create function cdc_export.table_of_role(name text) returns regclass
language plpgsql stable strict set search_path = pg_catalog, pg_temp as $$
begin
  perform set_config('search_path', coalesce(nullif(current_setting('cdc_export.role_path', true), ''),
    (select s.reset_val from pg_settings s where s.name = 'search_path')), true);
  return pg_catalog.to_regclass(name);
end $$;

create function cdc_export.type_of_role(type oid, modifier integer) returns text
language plpgsql stable strict set search_path = pg_catalog, pg_temp as $$
begin
  perform set_config('search_path', coalesce(nullif(current_setting('cdc_export.role_path', true), ''),
    (select s.reset_val from pg_settings s where s.name = 'search_path')), true);
  return pg_catalog.format_type(type, modifier);
end $$;

-- Appends the role's own search_path to the transaction's if Postgres can't plan a read of the table otherwise, and returns
-- whether it did. The planner inlines the SQL functions of a table's indexes, statistics, constraints and partition key, and
-- their bodies may name functions and types without a schema. Raises CE002 with Postgres's message if the read can't be planned then either.
-- Only for our own sessions, whose search_path it relies on.
create function cdc_export.widen_search_path(from_item text, table_oid oid) returns boolean
language plpgsql as $$
declare
  relations constant oid[] := array(select p.relid::oid from pg_partition_tree(table_oid) p) || table_oid;
begin
  if not exists (
      select from pg_index x where x.indrelid = any (relations) and (x.indexprs is not null or x.indpred is not null))
    and not exists (select from pg_statistic_ext s where s.stxrelid = any (relations))
    and not exists (select from pg_constraint c where c.conrelid = any (relations) and c.contype = 'c')
    and not exists (select from pg_partitioned_table p where p.partrelid = any (relations) and p.partexprs is not null) then
    return false;
  end if;
  for attempt in 1..2 loop
    begin
      -- The planner looks at constraints only if there is a condition.
      execute 'select from ' || from_item || ' where tableoid = ''0''::oid limit 0';
      return attempt = 2;
    exception
      when insufficient_privilege then
        raise;
      when syntax_error_or_access_rule_violation or invalid_schema_name then -- the first one is all of class 42
        if attempt = 2 then
          raise exception '%', sqlerrm using errcode = 'CE002';
        end if;
    end;
    perform set_config('search_path', concat_ws(', ', current_setting('search_path'),
      nullif(current_setting('cdc_export.role_path', true), '')), true);
  end loop;
end $$;

-- Returns the names of the columns of a table's primary key, in their order, without columns that its index only
-- includes. Only for our own sessions, whose search_path it relies on.
create function cdc_export.primary_key(table_oid oid) returns text[]
language sql stable as $$
  select array(
    select a.attname::text
    from pg_index x
    cross join lateral unnest(x.indkey) with ordinality as k (attnum, place)
    join pg_attribute a on a.attrelid = x.indrelid and a.attnum = k.attnum
    where x.indrelid = $1 and x.indisprimary and k.place <= x.indnkeyatts
    order by k.place)
$$;

-- Raises the error that ends an export at a cell larger than CELL_MAX_BYTES. It is called only for such a cell, so each
-- other row costs only the comparison.
create function cdc_export.refuse_cell(column_name text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception '%', column_name using errcode = 'CE001';
end $$;

-- Callers, schedules, receivers -----------------------------------------------

-- API keys. Only the SHA-256 of a key is stored: 256 random bits need neither salt nor a slow hash.
create table cdc_export.keys (
  id bigint generated always as identity primary key,
  name text not null,
  prefix text collate "C" not null unique, -- the part of the key that people see
  hash bytea not null check (octet_length(hash) = 32),
  consumers text[] check (cardinality(consumers) > 0), -- null: all
  scopes text[] not null check (cardinality(scopes) > 0 and scopes <@ array['export:read', 'export:write', 'admin']),
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
  -- The last full export that the schedule made because its incremental or delta export had failed and asked for one.
  healed_by uuid,
  skipped bigint not null default 0, -- slots since last_run_at whose lane was busy
  skipped_at timestamptz,
  refused text, -- why the slot that is due has no job yet; null: none is due, or nobody has tried
  refused_at timestamptz
);

-- Deliveries of events: a row for each end of an export and each receiver that takes such events, made in the
-- transaction that ends the export.
create table cdc_export.deliveries (
  id uuid primary key, -- the event's id too: the same at each attempt
  job uuid not null references {schema}.exports (id) on delete cascade,
  endpoint text not null collate "C", -- the receiver's name in the operator's file
  event text not null collate "C" check (event in ('completed', 'failed', 'cancelled')),
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
