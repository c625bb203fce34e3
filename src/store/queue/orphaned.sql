-- The condition of a running job `e` whose session has ended, and whose lease has more than a second left.
-- A role sees the start of its own sessions only. Another role's session with the same process id counts as the job's.
e.status = 'processing' and e.session_pid is not null
and e.lease_expires_at > statement_timestamp() + interval '1 second' and e.lease_expires_at < 'infinity'
and not exists (
  select from pg_stat_activity a
  where a.pid = e.session_pid and coalesce(a.backend_start = e.session_started, true))
