-- source.capture.is_plain_key
-- $1 oid: the table
-- $2 jsonb: the names of the columns of a key
--
-- True if the texts of the key depend on no setting of a session, by the types that are known for that.
select not exists (
  select from jsonb_array_elements_text($2::jsonb) part (name)
  left join pg_attribute a on a.attrelid = $1 and a.attname = part.name and not a.attisdropped
  where a.atttypid is null
    or a.atttypid <> all ('{int2,int4,int8,numeric,oid,uuid,text,varchar,bpchar,bool}'::regtype[]))
