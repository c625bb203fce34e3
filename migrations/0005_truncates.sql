-- Whether a table was truncated is asked before every export. Without an index of its own the answer was every entry of the
-- log since the consumer's position, read one by one.
create index change_log_truncates on cdc_export.change_log (tbl, xid) where op = 'T';
