-- What is told to receivers: a row for each end of an export and each receiver that wants to hear of it, made in the transaction that ends
-- the export. A version before writes none: while it runs beside this one, nobody is told of what it ends.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

create table cdc_export.deliveries (
  id uuid primary key, -- of the event too: the same at each try
  job uuid not null references exports (id) on delete cascade,
  endpoint text not null collate "C", -- the receiver's name in the operator's file
  event text not null collate "C" check (event in ('completed', 'failed', 'cancelled')),
  created_at timestamptz not null default clock_timestamp(),
  attempt integer not null default 0 check (attempt >= 0), -- how often it was begun since it was made, or asked for again
  -- When it is due. A process that takes it moves this on, so that another takes it over if the first one vanishes. Infinity: never.
  run_at timestamptz not null default clock_timestamp(),
  delivered_at timestamptz,
  dead_at timestamptz,
  last_status smallint, -- the last answer's; null: there was none
  last_error text,
  unique (job, endpoint)
);

-- What is due, and what a monitor counts.
create index deliveries_open on cdc_export.deliveries (endpoint, run_at) where delivered_at is null;
-- A page of those that wait or are dead, however many others there are.
create index deliveries_undelivered on cdc_export.deliveries (id) where delivered_at is null;
