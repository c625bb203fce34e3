-- source.purge.held_bytes
-- Returns the bytes of the change log that positions hold, in all tables together.
with marks as materialized (
  -- include purge/furthest.sql
),
-- include purge/held.sql
select coalesce(sum(bytes), 0)::bigint from held
