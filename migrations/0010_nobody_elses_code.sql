-- The image of a row that is gone is the text of the row: a jsonb refused what a row may hold, and with it the DELETE. Rows that
-- were logged before keep theirs in `old`.
alter table cdc_export.change_log
  add column image text collate "C", -- as Postgres writes a row
  add column image_columns smallint[]; -- the numbers of the columns that it has, in their order: names may change

-- The values of a row, of its text ("Composite Type Input and Output Syntax" in Postgres's documentation): null for nothing between
-- two commas, else what is quoted there, or as it stands. Called where a role's search_path rules, so that it names each schema.
create function cdc_export.values_of(image text) returns text[]
language plpgsql immutable strict parallel safe as $$
declare
  part text;
  cut text[]; -- a value with commas, so far as it is read; null outside of one
  is_odd boolean;
  found text[] := '{}';
begin
  -- A comma between quotes is the value's: what was cut there is put together again. Each part is looked at once.
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

-- What only one session does at a time. Not an advisory lock, which anybody may take who may connect.
create table cdc_export.locks (name text primary key);
insert into cdc_export.locks values ('purge'), ('track');
do $$
declare
  role text;
begin
  -- Whoever else runs the service here may use it like the tables that were there.
  for role in
    select distinct case g.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end
    from pg_class c cross join lateral aclexplode(c.relacl) g
    where c.oid = 'cdc_export.lanes'::regclass and g.grantee <> c.relowner and g.privilege_type = 'UPDATE'
  loop
    execute format('grant select, update on cdc_export.locks to %s', role);
  end loop;
end $$;

-- A table, and a type's name, as the role's own search_path has them; the session keeps that path beside ours (`src/connection.rs`).
-- In another's session it is what RESET would set, which takes long to ask. What is set here ends with the call.
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

-- An empty search_path still begins with the session's temporary objects.
alter function cdc_export.users_operation_type() set search_path = pg_catalog, pg_temp;
alter function cdc_export.exports_keep_terminal() set search_path = pg_catalog, pg_temp;
alter function cdc_export.refuse_cell(text) set search_path = pg_catalog, pg_temp;
