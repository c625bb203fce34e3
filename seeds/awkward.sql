-- seeds.awkward
-- Names that break careless CSV writers and readers. Every export carries them unchanged; running
-- this again sends them again, as UPDATE.
\set ON_ERROR_STOP on
\encoding UTF8

begin;

-- Only the table that `cdc-export` made, never one that somebody brought.
do $$
begin
    perform
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    join cdc_export.owned as o on o.schema_name = n.nspname and o.table_name = c.relname
    where c.oid = to_regclass('users');
    if not found then
        raise exception 'users is not the demo table: nothing was changed';
    end if;
end
$$;

insert into users (name, email, created_at, updated_at)
values
    ('Comma, Separated', 'comma@example.com', now(), now()),
    ('Dwayne "The Rock" Johnson', 'quotes@example.com', now(), now()),
    ('"', 'one-quote@example.com', now(), now()),
    ('Miles O''Brien', 'apostrophe@example.com', now(), now()),
    (E'Line\nFeed', 'lf@example.com', now(), now()),
    (E'Carriage\r\nReturn', 'crlf@example.com', now(), now()),
    (E'Tab\tbed', 'tab@example.com', now(), now()),
    ('Back\slash', 'backslash@example.com', now(), now()),
    -- Ends the input of a careless COPY.
    ('\.', 'end-of-copy@example.com', now(), now()),
    -- Empty, which is not NULL.
    ('', 'empty@example.com', now(), now()),
    ('NULL', 'null@example.com', now(), now()),
    ('  spaces around  ', 'spaces@example.com', now(), now()),
    -- A spreadsheet takes these for formulas.
    ('=HYPERLINK("http://example.com";"click")', 'formula@example.com', now(), now()),
    ('+1-2', 'plus@example.com', now(), now()),
    ('@SUM(A1:A9)', 'at@example.com', now(), now()),
    -- And this for a number without its zeros.
    ('007', 'zeros@example.com', now(), now()),
    ('Zoë Ångström', 'latin@example.com', now(), now()),
    -- The same letters, composed and not.
    (U&'Jos\00E9 / Jose\0301', 'combining@example.com', now(), now()),
    ('محمد بن سلمى', 'right-to-left@example.com', now(), now()),
    ('山田 花子', 'wide@example.com', now(), now()),
    ('👩‍🚀 Ripley 🐈', 'emoji@example.com', now(), now()),
    (U&'\FEFFbyte order mark', 'bom@example.com', now(), now()),
    (repeat('long ', 51), 'long@example.com', now(), now()),
    ('Far in the past', 'past@example.com', '0001-01-01 00:00:00+00', '1969-12-31 23:59:59.999999+00')
on conflict (email) do update
set name = excluded.name, updated_at = now(), is_deleted = false;

commit;
