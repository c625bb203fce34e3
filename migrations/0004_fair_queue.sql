-- A queue in which consumers, keys and locked tables leave room for others.
alter table {schema}.exports
  -- Workers claim jobs in this order. The first job of a consumer that has none gets a turn before the second job of a
  -- consumer that waits. A job from before this column, or of a release that doesn't know it, is claimed first.
  add column turn timestamptz not null default 'epoch',
  -- The table of an open job was locked when an attempt last needed it: no job of the dataset is claimed until then.
  -- After that, one attempt at a time tries the table. Null: no attempt since a successful one found a lock.
  add column locked_until timestamptz,
  add column key_prefix text collate "C"; -- of the key that asked for the job; null: none

create index exports_turn on {schema}.exports (turn, created_at) where status = 'pending';
create index exports_locked on {schema}.exports (dataset)
  where locked_until is not null and status in ('pending', 'processing');
create unique index exports_one_trial on {schema}.exports (dataset)
  where locked_until is not null and status = 'processing';
create index exports_open_of_key on {schema}.exports (key_prefix)
  where key_prefix is not null and status in ('pending', 'processing');

-- One key must not learn the idempotency keys of another key's ad-hoc exports. A consumer id does not begin with
-- a colon.
drop index {schema}.exports_idempotency_key;
create unique index exports_idempotency_key
  on {schema}.exports (coalesce(consumer_id, ':' || key_prefix, ''), idempotency_key) where idempotency_key is not null;
-- The open jobs of a consumer, or the ad-hoc ones of a key, in the order of their turns.
create index exports_open_turn on {schema}.exports (coalesce(consumer_id, ':' || key_prefix, ''), turn)
  where status in ('pending', 'processing');
