-- The condition of a running job `j` whose session has ended, and whose lease has more than a second left.
j.status = 'processing' and j.session is not null
and j.lease_expires_at > statement_timestamp() + interval '1 second'
and j.session not in (select a.application_name from pg_stat_activity a where a.application_name is not null)
