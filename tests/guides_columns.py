"""Keeps copies of a table whose columns change, as docs/guides/loading.md says. See guides.sh.

    python tests/guides_columns.py SERVER TRACK…    with libpq's variables for the service's database, which has the dataset `people`

TRACK is the command line that tracks the dataset.
"""

import subprocess
import sys

import psycopg
from loaders import TARGETS, Copy, finish, types

SERVER, TRACK = sys.argv[1], sys.argv[2:]
KEY = '"re gion", id'
PEOPLE = Copy(SERVER, "people", "people")


def run(sql):
    with psycopg.connect("") as connection:
        connection.execute(sql)


def check(what, expected, columns, **others):
    """Brings each target up to date with an export of this type; of another one where that is said."""
    for which in TARGETS:
        load = PEOPLE.update(which)
        assert types(load) == [others.get(which, expected)], f"{what}: {which}: {load}"
    with psycopg.connect("") as connection:
        columns = f"{KEY}, {columns}"
        rows = connection.execute(f"select {columns} from people order by {KEY}").fetchall()
    for which in TARGETS:
        made = PEOPLE.rows(which, columns, KEY)
        assert made == rows, f"{what}: {which} differs: {made[:3]}, not {rows[:3]}"
    print(f"ok: {what}: {len(rows)} rows in each")


check("a table of several key columns", "delta", "first, last")

# A column is replaced by another of its name, which is the file's last one then.
run("alter table people add column f2 text; update people set f2 = first where id < 30;"
    "alter table people drop column first; alter table people rename column f2 to first;"
    "update people set first = 'F' where first is null")
check("a column that was replaced", "full", "first, last")
run("update people set last = 'moved' where id < 10; delete from people where id = 11")
check("and a delta after it", "delta", "first, last")

# Columns come, of whatever types: both ask for a full export.
run("alter table people add column age integer not null default 7, add column u uuid default '00000000-0000-0000-0000-00000000000a',"
    "add column d date default '2026-11-20', add column t time default '10:11', add column b bytea default '\\x00ff', add column r real default 1.5,"
    "add column f8 float8 default 0.1, add column s smallint default 1, add column j jsonb default '{}', add column a integer[] default '{1}',"
    "add column n numeric default 0.1, add column ts timestamp default '2026-11-20', add column i interval default '1 day';"
    "update people set age = 30 where id = 3")
check("new columns", "full", "first, last, age")
run("update people set age = 40 where id = 4")
check("and a delta with them", "delta", "first, last, age")

# A column has another name.
run("alter table people rename column last to family")
check("a column of another name", "full", "first, family, age")

# A column goes. Nothing is missing then: `apply` keeps the table's, and goes on.
run("alter table people drop column age; update people set first = 'gone' where id = 8")
check("a column that is gone", "full", "first, family", postgres="delta")

# Two columns of one type exchange their names.
run("alter table people rename first to f; alter table people rename family to first; alter table people rename f to family")
check("columns that exchanged their names", "full", "first, family")

# A bulk load that leaves the triggers as Postgres gives them back. `apply` loads full exports, and says that none of them mends it; the
# package loads nothing.
run("alter table people disable trigger all; update people set family = 'bulk' where id = 6; alter table people enable trigger all")
for turn in range(2):
    load, said = finish(PEOPLE.start("postgres"))
    assert types(load) == ["full"] and "`cdc-export track people`" in said, said
    refused = PEOPLE.start("duckdb")
    _, said = refused.communicate()
    assert refused.returncode == 1 and "`cdc-export track people`" in said, said
subprocess.run(TRACK, check=True, stdout=subprocess.DEVNULL)
check("triggers that are back", "full", "first, family")
run("update people set family = 'after' where id = 7")
check("and a delta behind them", "delta", "first, family")
