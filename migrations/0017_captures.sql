-- What captures a table's changes is renewed without a full export, and an emptied log is told.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

-- Marks of triggers and functions that positions may have saved, each with the mark of what took its place.
alter table cdc_export.tracked add column renewed jsonb not null default '{}';

-- Whoever empties the log takes every position's changes with it. Exports that run see that their position was touched.
create function cdc_export.log_emptied() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update watermarks set snap_live = null, snap_del = null, log_lost = 'A', version = version + 1
  where coalesce(snap_live, snap_del) is not null;
  return null;
end $$;
revoke execute on function cdc_export.log_emptied() from public;
create trigger log_emptied after truncate on cdc_export.change_log for each statement execute function cdc_export.log_emptied();
alter table cdc_export.change_log enable always trigger log_emptied;
