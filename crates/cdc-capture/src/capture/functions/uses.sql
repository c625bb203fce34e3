-- source.capture.uses
-- The trigger functions that the session's role may drop, also as the owner of their schema: those that triggers call,
-- those that none calls, and whether an owner of a table lacks the right to them. The owner of a partitioned table
-- needs it for the triggers of new partitions.
with called as materialized (
  select x.tgfoid, array_agg(distinct t.relowner) as owners
  from pg_trigger x
  join pg_class t on t.oid = x.tgrelid
  group by x.tgfoid),
functions as materialized (
  select p.oid, p.proowner, called.owners
  from pg_proc p
  join pg_namespace n on n.oid = p.pronamespace
  left join called on called.tgfoid = p.oid
  where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\_%'
    and (pg_has_role(p.proowner, 'usage') or pg_has_role(n.nspowner, 'usage')))
select array(select f.oid from functions f where f.owners is not null) as used,
  array(select f.oid from functions f where f.owners is null) as unused,
  exists (
    select from functions f
    cross join lateral unnest(f.owners) owner
    where pg_has_role(f.proowner, 'usage') and not has_function_privilege(owner, f.oid, 'execute')) as is_lacking
