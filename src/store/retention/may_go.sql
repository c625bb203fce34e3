-- The condition that the consumer of an export `f`, in the lane `l`, has acknowledged it, or acknowledges nothing, or
-- had the time to. A restore may have set the numbers back or left gaps. At worst this keeps an export for longer.
-- $7 is the parameter of `retention/files_past.sql`.
(f.number > l.acknowledged and extract(epoch from clock_timestamp() - f.published_at) < $7) is not true
