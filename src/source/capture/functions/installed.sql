-- source.capture.installed
-- The second line of a function has the version of its text, the oid of its table and the key.
select p.proname::text as name, p.prosrc as body, pg_get_userbyid(p.proowner)::text as owner,
  pg_has_role(p.proowner, 'usage') as is_ours, head[1]::int as version, head[2]::oid as root,
  case when head is not null then array(select jsonb_array_elements_text(head[3]::jsonb)) end as key,
  p.proconfig is not null as has_settings,
  its.callers is not null as is_used, has_function_privilege('public', p.oid, 'execute') as is_public,
  coalesce(its.callers, '{}') as callers, coalesce(its.is_lacking, false) as is_lacking
from pg_proc p
cross join lateral regexp_match(p.prosrc, '^\n-- cdc-export (\d+) (\d+) (\[[^\n]*\])\n') head
-- The owners of the tables with a trigger of the function.
left join lateral (
  select array_agg(distinct pg_get_userbyid(t.relowner)::text) as callers,
    bool_or(not has_function_privilege(t.relowner, p.oid, 'execute')) as is_lacking
  from pg_trigger x join pg_class t on t.oid = x.tgrelid where x.tgfoid = p.oid) its on true
where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\_%'
