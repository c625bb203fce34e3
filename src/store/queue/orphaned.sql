-- The condition of a running job `e` whose session has ended, and whose lease has more than a second left.
e.status = 'processing' and e.session is not null
and e.lease_expires_at > statement_timestamp() + interval '1 second' and e.lease_expires_at < 'infinity'
and e.session not in (select a.application_name from pg_stat_activity a where a.application_name is not null)
