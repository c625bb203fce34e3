-- Ends an export at a cell that is beyond its bound. Called only then: it is the bound's comparison that every row pays for.
create function cdc_export.refuse_cell(column_name text) returns boolean
language plpgsql set search_path = '' as $$
begin
  raise exception '%', column_name using errcode = 'CE001';
end $$;
