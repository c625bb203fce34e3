-- store.commit.remember_masks
-- Replaces the masked columns that are remembered for each dataset and table.
-- $1 text[]: the datasets
-- $2 oid[]: their tables
-- $3 jsonb[]: for each, the columns, as objects with `number`, `name` and `rule`
with its as materialized (
  select * from unnest($1, $2, $3) as its (dataset, table_oid, columns)
),
forgotten as (
  delete from cdc_export.masked_columns m
  using its
  where (m.dataset, m.table_oid) = (its.dataset, its.table_oid)
    and not exists (
      select from jsonb_array_elements(its.columns) c where (c ->> 'number')::smallint = m.number)
)
insert into cdc_export.masked_columns (dataset, table_oid, number, name, rule)
select its.dataset, its.table_oid, (c ->> 'number')::smallint, c ->> 'name', c ->> 'rule'
from its
cross join jsonb_array_elements(its.columns) c
on conflict (dataset, table_oid, number) do update set name = excluded.name, rule = excluded.rule
