-- A lane as its readers see it: its published exports have numbers, and nothing of it is out of order.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

-- How many exports of the lane were ever published.
alter table cdc_export.lanes add column last_number bigint not null default 0;

alter table exports
  add column number bigint, -- among the lane's published exports, from 1
  -- The export that the caller had loaded last, as it said and as it was checked; null beside `has_after`: none yet.
  add column has_after boolean not null default false,
  add column after_job uuid,
  add column after_sha256 text,
  add constraint after_is_a_consumers check (not has_after or consumer_id is not null),
  add constraint after_is_said check (after_job is null or has_after),
  add constraint after_has_a_job check (after_sha256 is null or after_job is not null);

-- An export that was committed, and that another process of an older version passed by before its file had its name: whoever reads the
-- lane has what came after it, and would take its older rows for newer ones. It is lost to them, as if its file were.
with overtaken as (
  update exports o
  set status = 'failed', progress = least(o.progress, 99), error_code = 'file_lost', continuity = 'file_lost',
      error_detail = 'a later export of its consumer was published first: what this one held needs a full export',
      staged_name = null, sha256 = null, file_inode = null, file_modified_ns = null
  where o.status = 'completed' and o.published_at is null and o.consumer_id is not null
    and exists (
      select from exports later
      where later.consumer_id = o.consumer_id and later.dataset = o.dataset and later.lane_seq > o.lane_seq
        and later.published_at is not null)
  returning o.consumer_id, o.dataset, o.lane_seq)
update watermarks w set file_lost = true, version = w.version + 1
from (select consumer_id, dataset, max(lane_seq) as lane_seq from overtaken group by consumer_id, dataset) lost
where w.consumer_id = lost.consumer_id and w.dataset = lost.dataset
  and not exists (
    select from exports later
    where later.consumer_id = lost.consumer_id and later.dataset = lost.dataset and later.lane_seq > lost.lane_seq
      and later.export_type = 'full' and later.status = 'completed');

-- What a clock left that was set back: a lane's times go on from those before.
update exports e set created_at = risen.created_at
from (
  select id, created_at as was, lane_seq * interval '1 microsecond'
    + max(created_at - lane_seq * interval '1 microsecond') over (partition by consumer_id, dataset order by lane_seq) as created_at
  from exports where consumer_id is not null) risen
where e.id = risen.id and risen.created_at <> risen.was;

update exports e set number = published.number
from (
  select id, row_number() over (partition by consumer_id, dataset order by lane_seq) as number
  from exports where consumer_id is not null and published_at is not null) published
where e.id = published.id;

insert into cdc_export.lanes as l (consumer_id, dataset, next_seq, last_number)
select consumer_id, dataset, max(lane_seq), max(number) from exports where number is not null group by consumer_id, dataset
on conflict (consumer_id, dataset) do update set last_number = excluded.last_number;

alter table exports
  add constraint published_has_a_number check (number is not null or published_at is null or consumer_id is null);
-- What holds a lane up: a committed job whose file has no name yet.
create index exports_unpublished_of_lane on exports (consumer_id, dataset, lane_seq)
  where status = 'completed' and published_at is null;
create unique index exports_number on exports (consumer_id, dataset, number) where number is not null;

-- The tables' own statistics know nothing of the new columns.
analyze exports;
