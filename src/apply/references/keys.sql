-- apply.references.keys
-- Returns the foreign keys that reference some tables. A partition counts as its whole table.
-- $1 bigint[]: the oids of the tables
select child.oid::int8 as child, parent.oid::int8 as parent, k.confdeltype in ('c', 'n', 'd') as changes_children,
  k.condeferrable as is_deferrable,
  format('not exists (select from %s c where %s)', child.oid::regclass, (
    select string_agg(
      format('t.%I operator(%I.%s) c.%I', referenced.attname, n.nspname, o.oprname, referencing.attname), ' and ')
    from unnest(k.conkey, k.confkey, k.conpfeqop) as pair (referencing, referenced, equal)
    join pg_attribute referencing on referencing.attrelid = k.conrelid and referencing.attnum = pair.referencing
    join pg_attribute referenced on referenced.attrelid = k.confrelid and referenced.attnum = pair.referenced
    join pg_operator o on o.oid = pair.equal
    join pg_namespace n on n.oid = o.oprnamespace)) as is_unreferenced
from pg_constraint k
cross join lateral (select coalesce(pg_partition_root(k.conrelid), k.conrelid)::oid) child (oid)
cross join lateral (select coalesce(pg_partition_root(k.confrelid), k.confrelid)::oid) parent (oid)
-- A partition has a copy of each key of its table.
where k.contype = 'f' and k.conparentid = 0 and parent.oid::int8 = any ($1)
