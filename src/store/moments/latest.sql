-- The last moment.
(select m.* from cdc_export.moments m order by m.next_xid desc, m.at desc limit 1) last
