-- A table for each type that the encoder knows: its values at every edge, NULL, and 500 random ones.
select setseed(0.17);

create table of_int2 (id int8 generated always as identity primary key, v int2);
insert into of_int2 (v) values (null), (0), (-1), (-32768), (32767);
insert into of_int2 (v) select random() * 65535 - 32768 from generate_series(1, 500);

create table of_int4 (id int8 generated always as identity primary key, v int4);
insert into of_int4 (v) values (null), (0), (-1), (-2147483648), (2147483647);
insert into of_int4 (v) select random() * 4294967295 - 2147483648 from generate_series(1, 500);

create table of_int8 (id int8 generated always as identity primary key, v int8);
insert into of_int8 (v) values (null), (0), (-1), (-9223372036854775808), (9223372036854775807);
insert into of_int8 (v) select (random() - 0.5) * 1.8e19 from generate_series(1, 500);

create table of_float4 (id int8 generated always as identity primary key, v float4);
insert into of_float4 (v) values
  (null), ('0'), ('-0'), ('1'), ('0.1'), ('1e-4'), ('1e-5'), ('123456'), ('999999.94'), ('1e6'), ('16777216'), ('1e-45'),
  ('1.1754944e-38'), ('3.4028235e38'), ('-3.4028235e38'), ('NaN'), ('Infinity'), ('-Infinity');
insert into of_float4 (v) select (random() - 0.5) * power(10, random() * 74 - 37) from generate_series(1, 500);

create table of_float8 (id int8 generated always as identity primary key, v float8);
insert into of_float8 (v) values
  (null), ('0'), ('-0'), ('1'), ('-1.5'), ('0.1'), ('1e-4'), ('1e-5'), ('1e15'), ('999999999999999'), ('1e22'), ('1e23'),
  ('9007199254740993'), ('5e-324'), ('2.2250738585072014e-308'), ('1.7976931348623157e308'), ('-1.7976931348623157e308'),
  ('NaN'), ('Infinity'), ('-Infinity');
insert into of_float8 (v) select (random() - 0.5) * power(10, random() * 610 - 305) from generate_series(1, 500);

create table of_numeric (id int8 generated always as identity primary key, v numeric);
insert into of_numeric (v) values
  (null), (0), (0.0), (0.00), (0.0000000), (1), (-1), (9999), (10000), (100000000), (10000.0001), (0.0001), (-0.00010000),
  (12345678901234567890.12345678900), ('1e-16383'), ('-1e131071'), (1.50::numeric(10, 2)), ('NaN'),
  (repeat('1234567890', 100)::numeric), (('0.' || repeat('000100002000030000', 60))::numeric),
  (('-' || repeat('9', 131072) || '.' || repeat('9', 16383))::numeric);
do $$ begin
  -- Before, numeric had no infinity.
  if current_setting('server_version_num')::int >= 140000 then
    insert into of_numeric (v) values ('Infinity'), ('-Infinity');
  end if;
end $$;
insert into of_numeric (v)
select round((random() - 0.5)::numeric * power(10::numeric, (random() * 60 - 30)::int), (random() * 40)::int)
from generate_series(1, 500);

create table of_bool (id int8 generated always as identity primary key, v bool);
insert into of_bool (v) values (null), (true), (false);

create table of_text (id int8 generated always as identity primary key, v text);
insert into of_text (v) values
  (null), (''), (' '), ('a,b'), ('"'), ('""'), ('\'), ('\N'), ('\.'), (E'line\nfeed'), (E'\r\n'), (E'\t\b\f\x01\x1f\x7f'),
  ('null'), ('NULL'), (U&'\FEFFx'), ('👩‍🚀'), (U&'\2028'), (''''), ('{"a": 1}');
-- No surrogates.
insert into of_text (v)
select repeat(chr((random() * 50000)::int + 1), (random() * 5)::int) || repeat(chr((random() * 50)::int + 1), n % 7)
from generate_series(1, 500) as n;

create table of_uuid (id int8 generated always as identity primary key, v uuid);
insert into of_uuid (v) values
  (null), ('00000000-0000-0000-0000-000000000000'), ('ffffffff-ffff-ffff-ffff-ffffffffffff');
insert into of_uuid (v) select md5(random()::text)::uuid from generate_series(1, 500);

create table of_bytea (id int8 generated always as identity primary key, v bytea);
insert into of_bytea (v) values
  (null), (''), ('\x00'), ('\x5c'), ('\x5c78'), ('\xff0a0d222c'), (decode(repeat('00ff', 50000), 'hex'));
insert into of_bytea (v)
select decode(substr(md5(random()::text), 1, 2 * (random() * 16)::int), 'hex') from generate_series(1, 500);

create table of_json (id int8 generated always as identity primary key, v json);
insert into of_json (v) values
  (null), ('null'), ('true'), ('1e400'), ('-0.00'), ('[]'), ('{}'), ('""'), ('"\\n"'), ('"\u0000"'), ('{"a":1, "a":2}'),
  (E' [1 ,\n\r\n\t{"a\\n" : "\\n\\"\\\\\\r"}]\n'), (E'\r"\\\\.\\\\"\n'), (U&'"\2028,\FEFF"'),
  (('[' || repeat(E' \n', 3000) || '"' || repeat('é\n', 3000) || '"]')::json);
insert into of_json (v) select to_json(v) from of_text where v is not null;
insert into of_json (v)
select jsonb_pretty(jsonb_build_object(v, id, 'b', jsonb_build_array(v, random())))::json from of_text where v is not null;

create table of_jsonb (id int8 generated always as identity primary key, v jsonb);
insert into of_jsonb (v) select v::jsonb from of_json where v::text not like '%\\u0000%';

create table of_timestamp (id int8 generated always as identity primary key, v timestamp);
insert into of_timestamp (v) values
  (null), ('2000-01-01'), ('1970-01-01'), ('1999-12-31 23:59:59.999999'), ('2000-02-29 12:34:56.7'), ('0001-01-01'),
  ('0001-12-31 23:59:59.000001 BC'), ('4714-11-24 BC'), ('9999-12-31 23:59:59.999999'), ('10000-01-01'),
  ('294276-12-31 23:59:59.999999'), ('infinity'), ('-infinity');
insert into of_timestamp (v)
select timestamp '4713-01-01 BC' + random() * interval '298000 years' from generate_series(1, 500);

create table of_timestamptz (id int8 generated always as identity primary key, v timestamptz);
insert into of_timestamptz (v) select v at time zone 'UTC' from of_timestamp;

create table of_date (id int8 generated always as identity primary key, v date);
insert into of_date (v) values
  (null), ('2000-01-01'), ('1970-01-01'), ('2000-02-29'), ('1900-03-01'), ('0001-01-01'), ('0001-12-31 BC'),
  ('4714-11-24 BC'), ('9999-12-31'), ('10000-01-01'), ('5874897-12-31'), ('infinity'), ('-infinity');
insert into of_date (v)
select date '2000-01-01' + ((random() * 2147483492)::int8 - 2451545)::int4 from generate_series(1, 500);

create table of_time (id int8 generated always as identity primary key, v time);
insert into of_time (v) values
  (null), ('00:00:00'), ('00:00:00.000001'), ('12:34:56.7'), ('23:59:59.999999'), ('24:00:00');
insert into of_time (v) select time '00:00' + random() * interval '1 day' from generate_series(1, 500);
