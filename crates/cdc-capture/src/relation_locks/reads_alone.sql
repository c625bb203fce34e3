-- The condition that the role can read a partition `c` by itself, and reads the same rows then.
c.relkind = 'r' and has_table_privilege(c.oid, 'select') and has_schema_privilege(c.relnamespace, 'usage')
and not row_security_active(c.oid)
and not exists (select from pg_attribute a where a.attrelid = c.oid and a.attgenerated = 'v')
