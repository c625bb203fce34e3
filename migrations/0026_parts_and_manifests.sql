-- An export in several files, and the chain of a lane's exports.
select pg_catalog.set_config('search_path', pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' order by place), true)
from pg_catalog.unnest(pg_catalog.current_schemas(false)) with ordinality as schemas (name, place)
where name operator(pg_catalog.<>) 'cdc_export';

alter table exports
  add column max_file_bytes bigint check (max_file_bytes > 0), -- as it was asked for; null: one file
  -- The manifest, as the publisher wrote it down before anybody saw it, and its digest; null: not committed, ad hoc, or by a version before.
  add column manifest text,
  add column digest text collate "C",
  -- How many files a completed job has, and how many of them have their names; null: one. The name of each is made of output_filename, and
  -- files.name, which the version before reads, is that of an only one.
  add column parts integer,
  add column parts_published integer;

-- The version before knows of one file alone, and must not hand out the first of several as all there is.
alter table exports
  add constraint published_in_all_parts check (parts is null or published_at is null or parts_published = parts) not valid;
