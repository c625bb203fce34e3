  -- The roles whose code may run with the rights of the current role. $1 text[]: those that the operator has named.
  --
  -- A superuser is a member of every role for `pg_has_role`, so the granted memberships are read. An admin option alone
  -- gives nobody's rights (Postgres 16 or later). A predefined role such as pg_monitor is given to many.
  ours (oid) as (
    select oid from pg_roles where rolname = current_user
    union
    select m.roleid from ours join pg_auth_members m on m.member = ours.oid
    join pg_roles r on r.oid = m.roleid and r.rolname !~ '^pg_'
    where coalesce((to_jsonb(m) ->> 'inherit_option')::bool or (to_jsonb(m) ->> 'set_option')::bool, true)
  ),
  named (oid) as (
    select oid from ours
    union
    select oid from pg_roles where rolsuper or rolname = any ($1::text[])
  ),
  -- The only member of pg_database_owner is the owner of the database.
  trusted (oid) as (
    select oid from named
    union
    select r.oid from pg_roles r join pg_database d on d.datname = current_database()
    where r.rolname = 'pg_database_owner' and d.datdba in (select oid from named)
  ),
