-- store.open_jobs.count_of_key
-- Counts the open jobs that a key asked for. The only usable key has no limit of its own, so its jobs count as none.
-- $1 bigint: the limit of the count
-- $2 text: the public part of the key
select case
  when exists (
    select from cdc_export.keys
    where prefix <> $2 and revoked_at is null and (expires_at is null or expires_at > clock_timestamp()))
  then (
    select count(*)
    from (select from cdc_export.jobs
      where coalesce(key_prefix, '') = $2 and status in ('pending', 'processing') limit $1) open)
  else 0 end
