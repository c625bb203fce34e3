-- Each export counts the quiet deletions since its position: without this index it would read all of the log since then.
create index change_log_quiet on cdc_export.change_log (table_oid, xid) where operation = 'Q';
