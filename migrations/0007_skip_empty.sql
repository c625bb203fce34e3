-- Exports that make no file if there is nothing to export.
alter table {schema}.exports
  add column skip_empty boolean, -- as the request has it; null: as the dataset has it
  drop constraint exports_status_check,
  add constraint exports_status_check
    -- skipped: the position was saved, and there is no file. Clients see `completed`, with `skipped`.
    check (status in ('pending', 'processing', 'completed', 'skipped', 'failed', 'cancelled')),
  drop constraint finished_is_terminal,
  add constraint finished_is_terminal
    check ((finished_at is not null) = (status in ('completed', 'skipped', 'failed', 'cancelled')));

drop trigger exports_keep_terminal on {schema}.exports;
create trigger exports_keep_terminal before update of status on {schema}.exports
  for each row when (old.status in ('completed', 'skipped', 'failed', 'cancelled'))
  execute function cdc_export.exports_keep_terminal();

-- A lane keeps its latest skipped job.
create index exports_skipped on {schema}.exports (consumer_id, dataset) where status = 'skipped';

alter table cdc_export.deliveries
  drop constraint deliveries_event_check,
  add constraint deliveries_event_check check (event in ('completed', 'skipped', 'failed', 'cancelled'));
