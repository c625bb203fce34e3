-- Numbers at the ends of their types, and in between, for decimals.py.
create domain cents as numeric(5, 2);
create table amounts (
  id int primary key, price numeric(10, 2), whole numeric(38), tiny numeric(38, 38), dom cents, digit numeric(1), nine numeric(9, 4),
  ten numeric(19, 10), free numeric, key uuid, at timestamptz not null default now());
insert into amounts values
  (1, 0, 0, 0, 0, 0, 0, 0, 1.50, '00000000-0000-0000-0000-00000000000a'),
  (2, -12345678.90, repeat('9', 38)::numeric, ('0.' || repeat('9', 38))::numeric, -999.99, 9, -99999.9999, 999999999.9999999999, 1e-30, null),
  (3, 99999999.99, -repeat('9', 38)::numeric, ('-0.' || repeat('9', 38))::numeric, 0.01, -9, 0.0001, -0.0000000001, 'NaN',
   'ffffffff-ffff-ffff-ffff-ffffffffffff'),
  (4, null, null, null, null, null, null, null, null, null);
insert into amounts
select i, (i * 7919 % 1000003)::numeric / 100, i::numeric ^ 7, 1 / i::numeric, (i % 200 - 100)::numeric / 100, i % 10, sqrt(i::numeric),
  ln(i::numeric), i::numeric / 3, md5(i::text)::uuid
from generate_series(5, 5000) as i;
