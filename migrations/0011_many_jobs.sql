-- Beside a million jobs that have ended, a question is answered by an index that has what it asks for side by side, or not soon.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

-- The lists of jobs, newest first. The key of an entry is all that a list may be filtered by, as one text, so that no other index
-- can take its place and pass over everybody else's jobs. A job that is committed and has no file yet is shown as processing.
create index exports_by_kind on exports (
  (export_type || ' ' || case when status = 'completed' and published_at is null then 'processing' else status end),
  created_at desc, id desc);
create index exports_by_dataset on exports (
  (dataset || ' ' || export_type || ' ' || case when status = 'completed' and published_at is null then 'processing' else status end),
  created_at desc, id desc);
create index exports_by_consumer on exports (
  (consumer_id || ' ' || export_type || ' '
    || case when status = 'completed' and published_at is null then 'processing' else status end),
  created_at desc, id desc);
create index exports_by_lane on exports (
  (consumer_id || ' ' || dataset || ' ' || export_type || ' '
    || case when status = 'completed' and published_at is null then 'processing' else status end),
  created_at desc, id desc);
drop index exports_newest;
drop index exports_newest_of;

-- Retention, consumer by consumer: what has ended, what of it has a file in which folder, and what has none any more.
create index exports_ended on exports (coalesce(consumer_id, ''), finished_at desc, id desc) where finished_at is not null;
create index exports_with_file on exports (store_id, coalesce(consumer_id, ''), finished_at desc, id desc)
  where status = 'completed' and published_at is not null and file_removed_at is null;
create index exports_without_file on exports (coalesce(consumer_id, ''), finished_at desc, id desc)
  where finished_at is not null and (status <> 'completed' or file_removed_at is not null);
drop index exports_finished_of;

-- The last completed job of a lane, behind however many that failed.
create index exports_completed on exports (consumer_id, dataset, lane_seq) where status = 'completed';

-- The table's own statistics know nothing of the new keys.
analyze exports;
