-- Change capture: the log that triggers write to, the positions of consumers, and the facts that exports compare.
--
-- All is in the schema cdc_export, which exists before this file runs, except the table watermarks. That one is in the
-- first schema of the role's search_path, normally public, because people read it.
--
-- Whoever runs this file replaces two words before, each in braces:
--   schema       the first schema of the search_path, as an identifier
--   schema_name  the same, as a string
-- They stand here without braces, because a schema's name may have a line break, which would end a comment.
--
-- Until the first release, this file is edited in place, and a database of another build is refused.

-- The tables outside of cdc_export that this service made. Every other table outside belongs to somebody else.
create table cdc_export.owned (
  schema_name text not null,
  table_name text not null,
  primary key (schema_name, table_name)
);

-- Identity of the database ----------------------------------------------------

-- The identity of this database: its cluster's number and its own. A copy of the database in another cluster has
-- another identity.
create function cdc_export.database_id() returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select lpad(to_hex(c.system_identifier), 16, '0') || '-' || d.oid
  from pg_control_system() c, pg_database d where d.datname = current_database()
$$;

-- The timeline that the cluster writes on, or `unknown`, which differs from each timeline: on a standby, and where the
-- server doesn't tell its position in the WAL, as Aurora with wal_level = replica. Such a server has shared storage: a
-- failover loses nothing, and to restore it means to put back a disk, which keeps a timeline elsewhere too. So markers
-- and `after` show a restore there, as they do after a disk was put back.
create function cdc_export.timeline() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return left(pg_walfile_name(pg_current_wal_lsn()), 8);
exception
  -- A missing right is an error: the server has a timeline, and to go on without it would miss a restore.
  when object_not_in_prerequisite_state or feature_not_supported then
    return 'unknown';
end $$;

-- Locks: one session at a time locks the row to track, and the table to purge. Not an advisory lock, which every role
-- that may connect can take.
create table cdc_export.locks (name text primary key);
insert into cdc_export.locks values ('track');

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

-- The tables whose capture somebody removed. The service does not track them by itself.
create table cdc_export.untracked (
  schema_name text not null,
  table_name text not null,
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
  quiet_deletes bigint -- of Q: how many rows a statement deleted
) with (
  autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
  -- To shorten the file of the emptied log, a vacuum would lock out the writers of all tables.
  vacuum_truncate = off);
-- A publication for all tables publishes deletes, and Postgres then refuses to delete rows without an identity: the
-- purge would stop. An identity of whole rows costs writers nothing. Under wal_level = logical a purge writes half as
-- much again to the WAL (500,000 rows: 125 MB and not 83); a unique index would cost each writer as much, under any
-- wal_level.
alter table cdc_export.change_log replica identity full;
create index change_log_changes on cdc_export.change_log (table_oid, xid);
-- Each export asks whether its table was truncated, and counts the quiet deletions since its position: without this
-- index it would read all of the log since then.
create index change_log_keyless on cdc_export.change_log (table_oid, xid) where key is null;

-- Moments: the database's snapshot, and when it was so. A transaction of the change log was committed before the
-- first moment that sees it. Written only while something is committed that the change log may have.
create table cdc_export.moments (
  at timestamptz not null,
  -- The transactions that this moment sees and the one before doesn't were committed after this time. Null: after the
  -- moment before.
  since timestamptz,
  snapshot pg_snapshot not null,
  next_xid xid8 not null, -- the first transaction that had not begun, as `snapshot` has it
  log_sequence bigint not null, -- the change log's latest sequence then
  open_xids xid8[] not null, -- the transactions under way that may have written to the change log
  primary key (next_xid, at)
);

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

-- These two look a table or a type's name up by the role's own search_path, which our sessions keep in a setting
-- (crates/pg-session). In another session it is the path that RESET would set, which is slow to read. The path that
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

-- Appends the role's own search_path to the transaction's if Postgres can't plan a read of the table otherwise, and
-- returns whether it did. The planner inlines the SQL functions of a table's indexes, statistics, constraints and
-- partition key, and their bodies may name functions and types without a schema. Raises CE002 with Postgres's message
-- if the read can't be planned then either. Only for our own sessions, whose search_path it relies on.
create function cdc_export.widen_search_path(from_item text, table_oid oid) returns boolean
language plpgsql as $$
declare
  relations constant oid[] := array(select p.relid::oid from pg_partition_tree(table_oid) p) || table_oid;
begin
  if not exists (
      select from pg_index x where x.indrelid = any (relations) and (x.indexprs is not null or x.indpred is not null))
    and not exists (select from pg_statistic_ext s where s.stxrelid = any (relations))
    and not exists (select from pg_constraint c where c.conrelid = any (relations) and c.contype = 'c')
    and not exists (
      select from pg_partitioned_table p where p.partrelid = any (relations) and p.partexprs is not null) then
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

-- Returns why no triggers can capture all changes of a table, and what helps. Null: they can. Only for our own sessions,
-- whose search_path it relies on.
create function cdc_export.uncapturable(table_oid oid) returns text
language sql stable as $$
  select case
    when c.relispartition then
      format('`%s` is a partition: name `%s`, whose partition it is', c.oid::regclass, pg_partition_root(c.oid)::regclass)
    else format('`%s` is %s, whose changes can''t be captured: capture = "none" makes full exports of it',
      c.oid::regclass, kind.name)
  end
  from pg_class c
  cross join lateral (select case
    when c.relkind = 'v' then 'a view'
    when c.relkind = 'm' then 'a materialized view'
    when c.relkind = 'f' then 'a foreign table'
    -- A write to a child fires none of its triggers.
    when c.relkind = 'r' and exists (select from pg_inherits i where i.inhparent = c.oid) then
      'a table from which others inherit'
    -- A write through its parent fires only the triggers of the parent.
    when exists (select from pg_inherits i where i.inhrelid = c.oid) then 'a table that inherits from another'
    when c.relpersistence <> 'p' then 'an unlogged table, which a crash empties'
    when exists (
      -- Postgres's own function for that would lock each partition.
      with recursive tree (oid) as (
        select c.oid union all select i.inhrelid from tree join pg_inherits i on i.inhparent = tree.oid)
      select from tree join pg_class p on p.oid = tree.oid where p.relpersistence <> 'p' or p.relkind = 'f') then
      'a table with a partition that is unlogged or foreign'
  end as name) kind
  where c.oid = table_oid and (c.relispartition or kind.name is not null)
$$;

-- Raises the error that ends an export at a cell larger than CELL_MAX_BYTES. It is called only for such a cell, so
-- each other row costs only the comparison.
create function cdc_export.refuse_cell(column_name text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception '%', column_name using errcode = 'CE001';
end $$;

-- Positions -------------------------------------------------------------------

-- The watermark of each consumer in each dataset, which people read, and the position from which the service goes on
-- (CHANGE-CAPTURE.md). An insert of consumer, time and updated_at alone is a watermark set by hand: all columns from
-- live_snapshot on are null then.
create table {schema}.watermarks (
  id uuid primary key default gen_random_uuid(),
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
  -- The value of last_exported_at when the snapshots were saved. If last_exported_at differs, somebody set it by
  -- hand.
  saved_last_exported_at timestamptz,
  saved_at timestamptz, -- when live_snapshot was saved
  -- The change log's latest sequence then; its distance from today's is how much of the log this holds.
  log_sequence bigint,
  deletions_saved_at timestamptz, -- the same two of deletions_snapshot
  deletions_log_sequence bigint,

  -- The state of the table that the guard compares later.
  cluster_id bigint, -- the system identifier of the cluster
  table_oid oid,
  relfilenode oid, -- the number of the table's file; null: a partitioned table has none
  table_columns_hash text, -- MD5 of the names and types of all of the table's columns
  -- An object: by their names the oids of the types of the columns in the files, the key, updated_at, created_at,
  -- deleted and the filter.
  column_types jsonb,
  definition_hash text, -- MD5 of the dataset's settings that decide which rows its files have
  guard_state jsonb, -- an object: what else the guard compares, by name. A missing member is not compared

  unique (consumer_id, dataset)
);

insert into cdc_export.owned (schema_name, table_name) values ({schema_name}, 'watermarks');

-- The exports that run. The purge keeps what their snapshots `purge_hold` didn't see, and spares their positions.
-- Whoever runs them puts a view of them in the place of this one.
create view cdc_export.running_exports as
select null::text collate "C" as consumer_id, null::text collate "C" as dataset, null::pg_snapshot as purge_hold,
  null::timestamptz as lease_expires_at
where false;

-- Masks -----------------------------------------------------------------------

-- The secret of masks. The database has its fingerprint alone: a process with another secret doesn't start.
create table cdc_export.mask_secret (
  is_only boolean primary key default true check (is_only), -- there is one row at most
  fingerprint text not null,
  accepted_at timestamptz not null default clock_timestamp()
);

-- The columns that were masked in an export of each dataset. A dataset is not exported while one of them is no masked
-- column, until somebody says `cdc-export mask drop`.
create table cdc_export.masked_columns (
  dataset text collate "C",
  name text collate "C",
  primary key (dataset, name)
);
