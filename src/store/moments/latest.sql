-- Where the change log is, and the last moment.
(select coalesce(pg_sequence_last_value(pg_get_serial_sequence('cdc_export.change_log', 'sequence')::regclass), 0)
   as sequence) log
left join (select m.* from cdc_export.moments m order by m.next_xid desc, m.at desc limit 1) last on true
