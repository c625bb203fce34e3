-- source.relations.read
-- Returns the relations that patterns may match, in the order of their names.
-- $1 text[]: the names that are looked up by the role's search_path
-- $2 text[]: the names of columns that patterns ask for
select n.nspname::text as schema_name, c.relname::text as table_name, members.owners, members.are_owners_trusted,
  c.relname = any ($1) and coalesce(cdc_export.table_of_role(quote_ident(c.relname)) = c.oid, false) as is_visible,
  c.relkind in ('r', 'p') and not c.relhasrules as is_plain_table,
  c.relispartition as is_partition, c.relpersistence = 'u' as is_unlogged,
  exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary) as has_key,
  coalesce(times.names, '{}') as indexed_times,
  array(select a.attname::text from pg_attribute a
        where a.attrelid = c.oid and a.attname = any ($2) and not a.attisdropped) as columns
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
cross join lateral (
  select array_agg(distinct m.owner) as owners, bool_and(m.is_trusted) as are_owners_trusted
  from (
    -- include owners/members.sql
  ) m) members
left join lateral (
  select array_agg(distinct a.attname::text) as names
  from pg_index i
  join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
  where i.indrelid = c.oid and i.indisvalid and i.indpred is null
    and a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype)) times on true
where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relpersistence <> 't'
  and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast', 'cdc_export')
  and n.nspname not like 'pg\_temp\_%'
  and (n.nspname, c.relname) not in (select o.schema_name, o.table_name from cdc_export.owned o)
order by n.nspname collate "C", c.relname collate "C"
