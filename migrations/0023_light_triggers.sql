-- The triggers cost their writers less.

-- Postgres reads the text of a check anew for each statement, which took a quarter of the triggers' time. Nobody but they may write here.
alter table cdc_export.change_log drop constraint if exists change_log_op_check, drop constraint if exists change_log_check;

-- The text of a row that is gone, whatever the session's settings are, for triggers that run without settings of their own.
create function cdc_export.image_of(whole record) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set timezone = 'UTC'
  set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1
  set lc_monetary from current as $$
begin
  return pg_catalog.concat(whole);
end $$;
