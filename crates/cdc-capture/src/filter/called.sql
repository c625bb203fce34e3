-- source.filter.called
-- $1 text[]: filters
-- $2 text[]: for each, its table
select called.hash
from unnest((select $1), (select $2)) with ordinality as input (filter, relation, place)
cross join lateral (
  -- The functions that are reached, by the names in the filter and in the texts of functions, two deep.
  with recursive reached (function, depth) as (
    select 0::oid, 0
    union
    select called.oid, r.depth + 1
    from reached r
    cross join lateral (
      select case when r.function = 0 then input.filter
        else (select coalesce(case p.prokind when 'a' then p.xmin::text else pg_get_functiondef(p.oid) end, '')
              from pg_proc p where p.oid = r.function) end as body
      offset 0) t
    cross join lateral (
      -- The words, and the quoted names.
      select string_to_array(
          translate(lower(t.body), E'"''(),.;:[]{}+*/<>=~!@#%^&|`?\\-\n\r\t\f', repeat(' ', 40)), ' ')
        || array(select replace(m[1], '""', '"') from regexp_matches(t.body, '"((?:[^"]|"")+)"', 'g') m) as names
      offset 0) words
    cross join lateral (
      select p.oid from pg_proc p where p.proname = any (words.names::name[])
      union all
      -- The functions of operators.
      select o.oprcode from pg_operator o where o.oid >= 16384 and r.depth < 1 and strpos(t.body, o.oprname) > 0
      union all
      -- The functions of casts.
      select c.castfunc
      from pg_cast c
      where c.castfunc >= 16384 and (
        exists (
          select from pg_attribute a
          where a.attrelid = to_regclass(input.relation) and a.attnum > 0
            and a.atttypid in (c.castsource, c.casttarget))
        or exists (
          select from pg_type y
          where y.oid in (c.castsource, c.casttarget) and y.typname = any (words.names::name[])))) called (oid)
    -- No join with the functions that were found: a schema may have thousands, each naming all others, and a planner
    -- without statistics compares each with each.
    where called.oid >= 16384 and r.depth < 2)
  -- The search_path decides which of several functions of a name is called.
  select md5(coalesce(
    string_agg(body, E'\n' order by body) || coalesce(current_setting('cdc_export.role_path', true), ''), '')) as hash
  from (
    select coalesce(case p.prokind when 'a' then p.xmin::text else pg_get_functiondef(p.oid) end, '') as body
    from pg_proc p where p.oid in (select function from reached)) bodies) called
order by input.place
