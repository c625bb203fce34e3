-- The table `c` and its partitions, each with its owner. Reading a table may run code of the owner of any of them. An
-- owner is trusted by default that is the session's role, or that owns the schema and is no superuser.
select pg_get_userbyid(m.relowner)::text as owner,
  m.relowner = own.oid or coalesce(m.relowner = o.oid and not o.rolsuper, false) as is_trusted
from (
  -- Postgres's function for the partitions would lock each of them.
  with recursive tree (oid) as (
    select c.oid
    union all
    select i.inhrelid from tree join pg_inherits i on i.inhparent = tree.oid where c.relkind = 'p')
  select oid from tree) members
join pg_class m on m.oid = members.oid
join pg_namespace n on n.oid = m.relnamespace
join pg_roles own on own.rolname = current_user
join pg_database d on d.datname = current_database()
-- The owner of the database stands for `pg_database_owner`, which owns the schema `public` since Postgres 15.
left join pg_roles o
  on o.oid = case when pg_get_userbyid(n.nspowner) = 'pg_database_owner' then d.datdba else n.nspowner end
