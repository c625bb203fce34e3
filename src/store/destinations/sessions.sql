-- The sessions of processes: the destination of each, and when the process last used the session. A role doesn't see
-- when another role's session was used. That one counts as in use, and `looked_at` is null.
(select substring(a.application_name from ' at ([0-9a-f]{32})$')::uuid as destination_id,
   coalesce(a.state_change, statement_timestamp()) as used_at, a.state_change as looked_at
 from pg_stat_activity a
 where a.datname = current_database() and a.application_name ~ '^cdc-export .* at [0-9a-f]{32}$'
   -- Any role may give its sessions such names.
   and has_table_privilege(a.usesysid, 'cdc_export.destinations', 'update')) session
