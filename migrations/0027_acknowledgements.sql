-- What a consumer has loaded of a lane, as it says. A version before doesn't read this, and its retention keeps nothing for it.
alter table cdc_export.lanes
  -- The number of the latest export that was acknowledged; all up to it are loaded. Null: the consumer never acknowledges. It is held against no
  -- other column: after a partial restore, or a change by hand, it may be beyond last_number, and must not keep the next export from its number.
  add column acknowledged bigint,
  add column acknowledged_at timestamptz;
