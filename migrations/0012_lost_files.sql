-- A committed export whose file vanished before it had its name has failed: the one failure that leaves a moved watermark.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

-- What lies behind the position was never handed out: only a full export goes on from there.
alter table watermarks add column file_lost boolean not null default false;

-- Terminal is final, but for a completed job without a published file, which nobody has been told is completed.
create or replace function cdc_export.exports_keep_terminal() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if new.status <> old.status
    and not (old.status = 'completed' and old.published_at is null and new.status = 'failed' and new.error_code = 'file_lost') then
    raise exception 'job % is %, which is final', old.id, old.status using errcode = 'restrict_violation';
  end if;
  return new;
end $$;
