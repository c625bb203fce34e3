-- seeds.changes
-- A day in the life of the demo table: run it between two exports, as often as you like, and the
-- next incremental or delta export shows it.
\set ON_ERROR_STOP on

begin;

-- Only the table that `cdc-export` made, never one that somebody brought.
do $$
begin
    perform
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    join cdc_export.owned as o on o.schema_name = n.nspname and o.table_name = c.relname
    where c.oid = to_regclass('users');
    if not found then
        raise exception 'users is not the demo table: nothing was changed';
    end if;
end
$$;

-- Three sign up: INSERT in a delta.
insert into users (name, email, created_at, updated_at)
select name, lower(name) || '.' || gen_random_uuid() || '@example.com', now(), now()
from unnest(array['Ada', 'Grace', 'Edsger']) as name;

-- Twenty change their name: UPDATE.
update users
set name = left(name, 240) || ' (renamed)', updated_at = now()
where id in (
    select id from users where not is_deleted and created_at < now() order by random() limit 20
);

-- One is corrected by somebody who forgets updated_at: sent all the same.
update users
set name = left(name, 240) || ' (corrected)'
where id in (
    select id from users where not is_deleted and updated_at < now() order by random() limit 1
);

-- Five are soft deleted: DELETE in a delta, absent from an incremental export.
update users
set is_deleted = true, updated_at = now()
where id in (
    select id from users
    where not is_deleted and updated_at < now() and name not like '%(corrected)'
    order by random() limit 5
);

-- One is gone altogether: DELETE too.
delete from users
where id in (
    select id from users
    where not is_deleted and updated_at < now() and name not like '%(corrected)'
    order by random() limit 1
);

commit;
