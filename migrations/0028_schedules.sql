-- How far the schedules of the operator's file have come. The file says what they are; a row is made when one is first seen.
create table cdc_export.schedules (
  name text primary key,
  slot timestamptz, -- the last one that was used, by a job or because it was skipped; null: none yet
  timing text not null, -- when the slots are, as the file said it last
  last_job uuid, -- the last job that was made for it, which may be forgotten since
  last_run_at timestamptz,
  healed_by uuid, -- the last full export that followed one which needed it
  skipped bigint not null default 0, -- slots since last_run_at whose lane was busy
  skipped_at timestamptz,
  refused text, -- why the slot that is due has no job yet; null: none is due, or nobody has tried
  refused_at timestamptz
);
