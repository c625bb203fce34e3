-- The table of docs/guides/elsewhere.md, with the values that readers of files are known to lose or to change.
create type mood as enum ('calm', 'NULL', 'null, "and" void');
create table orders (
    id bigint primary key,
    small smallint,
    quantity integer,
    total numeric(18, 2),
    amount numeric,
    ratio real,
    rate double precision,
    paid boolean,
    note text,
    code varchar(40),
    ref uuid,
    photo bytea,
    raw json,
    doc jsonb,
    day date,
    made timestamptz,
    local timestamp,
    opens time,
    takes interval,
    stock integer[],
    tags text[],
    span int4range,
    host inet,
    state mood
);
-- Nothing but a key; then everything small, and everything large.
insert into orders (id) values (1);
insert into orders values
    (-9223372036854775808, -32768, -2147483648, -9999999999999999.99, -99999999999999999999999999999999999999.123456789, '-infinity', '-infinity',
     false, '', '', '00000000-0000-0000-0000-000000000000', '', 'null', 'null', '0001-01-01', '0001-01-01 00:00:00.000001+00',
     '0001-01-01 00:00:00.000001', '00:00', '-1 year -2 days', '{}', '{}', 'empty', '0.0.0.0/0', 'calm'),
    (9223372036854775807, 32767, 2147483647, 9999999999999999.99, 123456789012345678901234567890123456789012345678.5, 'infinity', 'infinity',
     true, 'NULL', 'NULL', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '\xff00220a2c5c', '{"g": 1.50, "g": 2, "": "NULL"}',
     '{"n": 12345678901234567890.1234567890, "deep": [[{"a": "\"\\\n"}]]}', '9999-12-31', '9999-12-31 23:59:59.999999+00',
     '9999-12-31 23:59:59.999999', '23:59:59.999999', '1 mon 00:00:00.000001', '{1,NULL,-2}', '{NULL,"NULL","","a,b","\"","\\"," x "}', '[1,5)',
     '2001:db8::1', 'NULL'),
    (2, 0, 0, 0.00, 'NaN', 'NaN', 'NaN', true, E'line\nfeed\r\nand "quotes", commas; tabs\t\\', E'\\N', '0b7c3a52-65a1-4c5e-8a3c-1f2e3d4c5b6a',
     '\x5c78', '"text"', '"text"', '2026-02-26', '2026-02-26 04:30:00+00', '2026-02-26 04:30:00', '04:30', '1 day', '{{1,2},{3,4}}',
     '{{a,b},{c,d}}', '(,5)', '10.0.0.1', 'null, "and" void'),
    (3, 1, -1, 0.10, 1e-30, 1e-45, 5e-324, false, E'\n', '\.', null, '\x0a', '[1.0, 1e2, true, null]', '[1.0, 1e2, true, null]', '1969-12-31',
     '1969-12-31 23:59:59.999999+00', '2026-03-29 02:30:00', '12:00', '0', '{0}', '{""}', '[2,2]', '::1', 'calm'),
    (9007199254740993, 1, 16777217, 0.07, 1.500, 16777216, 0.1, true, E'"', '""', null, null, '1.50', '1.50', '1582-10-10',
     '1582-10-10 00:00:00+00', '1900-01-01 00:00:00', null, null, null, null, null, null, null);
-- Each of these is a word for NULL, a number, a time or a formula to some reader.
insert into orders (id, note, code)
select 100 + n, word, word
from unnest(array['NA', 'N/A', 'nan', 'None', 'null', '<NA>', 'true', '007', '1e5', '-0', '0x1F', '2026-02-26', ' spaces ', E'\t', '''', '=1+1', '#',
    '{}', 'Zoë 山田 👩‍🚀', U&'\FEFFmark', U&'\2028', E'\x7f', '\', 'a\', '"a', 'a,b', E'a\rb', '\"']) with ordinality as words (word, n);
-- One column, whose name a header must quote. A NULL is an empty line of CSV.
create table notes (U&"no, ""te""\000Aof it" text);
insert into notes values ('a'), (null), ('007'), (null);
