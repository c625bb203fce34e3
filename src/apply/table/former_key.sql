-- apply.table.former_key
-- Returns the statements that remove a former key from a table: its unique indexes, and NOT NULL of its columns. Leaves
-- out columns whose values the table makes by itself, because the export no longer writes them.
-- $1 text: the table
-- $2 text[]: the columns of the former key
-- $3 text[]: the columns of the key
-- $4 text[]: the columns of the export
select statement from (
  select 1 as place, c.relname as name, case
    when k.conname is null then format('drop index %s', i.indexrelid::regclass)
    else format('alter table %s drop constraint %I', $1, k.conname) end as statement
  from pg_index i
  join pg_class c on c.oid = i.indexrelid
  left join pg_constraint k on k.conindid = i.indexrelid and k.conrelid = i.indrelid and k.contype in ('p', 'u')
  where i.indrelid = $1::regclass and i.indisunique
    and (select array_agg(a.attname::text order by a.attname::text collate "C") from pg_attribute a
         where a.attrelid = i.indrelid and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
      = (select array_agg(k order by k collate "C") from unnest($2::text[]) k)
  union all
  select 2, a.attname, format('alter table %s alter column %I drop not null', $1, a.attname)
  from pg_attribute a
  where a.attrelid = $1::regclass and a.attnotnull and a.attidentity = '' and a.attname::text = any ($2)
    and a.attname::text <> all ($3) and (a.attname::text = any ($4) or not a.atthasdef)) found
order by place, name
