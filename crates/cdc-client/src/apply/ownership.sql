-- apply.ownership.find
-- Returns a schema, and the relation of a name in it if there is one, with what keeps the current role from writing to
-- it. No row: there is no such schema.
-- $1 text: the schema
-- $2 text: the name
select c.oid::int8 as oid,
  case
    when n.nspowner <> me.oid and not owner.rolsuper and owner.rolname <> 'pg_database_owner' and owner.oid <> d.datdba
      then format('schema %I belongs to %s', n.nspname, owner.rolname)
    when c.relowner <> me.oid then format('%I.%I belongs to %s', n.nspname, c.relname, pg_get_userbyid(c.relowner))
  end as other_owner,
  case
    when c.relkind <> 'r' then 'is no plain table'
    when c.relpersistence <> 'p' then 'is unlogged, so that a crash of its server would empty it without notice'
    when exists (select from pg_inherits i where c.oid in (i.inhrelid, i.inhparent))
      then 'is a part of another table, or has parts'
    when exists (select from pg_trigger t where t.tgrelid = c.oid and not t.tgisinternal) then 'has triggers'
    when exists (select from pg_constraint k where k.contype = 'f' and c.oid in (k.conrelid, k.confrelid))
      then 'has a foreign key, or is referenced by one'
    when exists (select from pg_rewrite r where r.ev_class = c.oid) then 'has rules'
    when c.relrowsecurity then 'has row security'
  end as obstacle,
  me.rolname::text as role
from pg_namespace n
join pg_roles me on me.rolname = current_user
join pg_roles owner on owner.oid = n.nspowner
join pg_database d on d.datname = current_database()
left join pg_class c on c.relnamespace = n.oid and c.relname = $2
where n.nspname = $1
