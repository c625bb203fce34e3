-- source.owners.untrusted
-- Returns the place of each table that has an owner who isn't trusted, and the owner.
-- $1 text[]: tables
-- $2 jsonb[]: for each, the owners who are trusted; null: those who are trusted by default
select input.place, min(m.owner) as owner
from unnest((select $1), (select $2)) with ordinality as input (name, owners, place)
cross join lateral (select c.oid, c.relkind from pg_class c where c.oid = to_regclass(input.name) offset 0) c
cross join lateral (
  -- include owners/members.sql
) m
where not coalesce(input.owners ? m.owner, m.is_trusted)
group by input.place
order by input.place
