-- source.parallel_apply.find
-- Returns the subscriptions that write to a partitioned table itself, or to a partition that has partitions, with the
-- place of the table.
-- $1 text[]: the names of tables
select distinct input.place, s.subname::text as name
from unnest($1) with ordinality as input (name, place)
join pg_class t on t.oid = cdc_export.table_of_role(input.name) and t.relkind = 'p'
cross join lateral (
  with recursive tree (oid) as (
    select t.oid union all select i.inhrelid from tree join pg_inherits i on i.inhparent = tree.oid)
  select r.srsubid
  from tree
  join pg_subscription_rel r on r.srrelid = tree.oid
  join pg_class c on c.oid = tree.oid and c.relkind = 'p') writer
join pg_stat_subscription s on s.subid = writer.srsubid
where
  -- include is_parallel
order by place, name
