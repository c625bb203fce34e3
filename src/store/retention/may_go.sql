-- The condition that the consumer of an export `f`, in the lane `l`, has acknowledged it, or acknowledges nothing, or
-- had the time to. A restore may have set the numbers back or left gaps. At worst this keeps an export for longer.
-- $5 and $8 are parameters of `retention/files_past.sql`.
(f.number > l.acknowledged and coalesce(extract(epoch from $5 - f.published_at) < $8, true)) is not true
