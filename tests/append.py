"""Appends exports as docs/guides/append.md says, and compares the current rows in three programs with the table. append.sh calls it.

    python tests/append.py SERVER FOLDER STAGE

The copies are in FOLDER, and outlive a stage.
"""

import json
import re
import sys
from decimal import Decimal
from pathlib import Path

import duckdb
import psycopg
from chdb import session

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "clients/python/src"))
from cdc_export import Client  # noqa: E402

SERVER, FOLDER, STAGE = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
PAGE = (Path(__file__).resolve().parent.parent / "docs/guides/append.md").read_text()
TABLES, POSTGRES, DUCKDB, CLICKHOUSE, TIDY = re.findall(r"^```sql\n(.*?)^```$", PAGE, flags=re.M | re.S)
(APPEND,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)
ROWS = "select id, customer, total from {} order by id"


def append(copy):
    """Runs the loop of the page, from the position of the stage before. Returns the types of the exports that it has appended."""
    stored = FOLDER / "position.json"
    names = {"lake": copy, "position": json.loads(stored.read_text()) if stored.exists() else None}
    before = copy.sql("select count(*) from orders_exports").fetchall()[0][0]
    exec(APPEND.replace("http://localhost:8080", SERVER), names)
    stored.write_text(json.dumps(names["position"]))
    types = copy.sql("select export_type from orders_exports order by export_order").fetchall()
    return [kind for (kind,) in types][before:]


def export(kind):
    """Makes an export that somebody asks for by hand."""
    with Client(SERVER) as client:
        client.wait(client.export("lake", kind, ["orders"], format="parquet"))


def in_postgres(copy):
    with psycopg.connect("") as connection:
        connection.execute(TABLES.replace("create table", "create temporary table"))
        for table in ("orders_log", "orders_exports"):
            rows = copy.sql(f"select * from {table}").fetchall()
            if rows:
                values = ", ".join(["%s"] * len(rows[0]))
                connection.cursor().executemany(f"insert into {table} values ({values})", rows)
        connection.execute(POSTGRES)
        before = connection.execute(ROWS.format("orders_now")).fetchall()
        connection.execute(TIDY)
        assert connection.execute(ROWS.format("orders_now")).fetchall() == before
        return before


def in_clickhouse(copy):
    made = TABLES
    types = {"bigint primary key": "Int64", "bigint": "Int64", "text": "Nullable(String)", "numeric(18, 2)": "Nullable(Decimal(18, 2))"}
    for old, new in types.items():
        made = made.replace(f" {old}", f" {new}")
    with session.Session() as database:
        for statement in made.replace(");", ") engine = MergeTree order by tuple();").split(";")[:-1]:
            database.query(statement)
        for table in ("orders_log", "orders_exports"):
            file = FOLDER / f"{table}.parquet"
            copy.execute(f"copy {table} to '{file}'")
            database.query(f"insert into {table} select * from file('{file}', Parquet)")
        database.query(CLICKHOUSE)
        lines = str(database.query(ROWS.format("orders_now"), "JSONCompactEachRow")).splitlines()
        rows = [json.loads(line, parse_float=Decimal) for line in lines]
        return [(int(key), customer, total if total is None else Decimal(total)) for key, customer, total in rows]


def compare(copy, what):
    with psycopg.connect("") as connection:
        source = connection.execute(ROWS.format("orders")).fetchall()
    found = {"DuckDB": copy.sql(ROWS.format("orders_now")).fetchall(), "Postgres": in_postgres(copy), "ClickHouse": in_clickhouse(copy)}
    for program, rows in found.items():
        assert rows == source, f"{what}, {program}: {rows} instead of {source}"
    print(f"{what}: {len(source)} rows in {', '.join(found)}", flush=True)


def change(statements):
    with psycopg.connect("") as connection:
        connection.execute(statements)


def step(copy, statements, exports, what):
    change(statements)
    assert append(copy) == exports
    compare(copy, what)


def begin(copy):
    for statement in (*TABLES.split(";")[:-1], DUCKDB):
        copy.execute(statement)
    export("full")
    statements = "update orders set total = null where id = 1; delete from orders where id in (2, 3); insert into orders values (51, null, 1)"
    step(copy, statements, ["full", "delta"], "a full export and a delta")


def change_more(copy):
    change("update orders set customer = 'other' where id < 10; insert into orders values (2, 'again', 0)")
    export("incremental")
    statements = "delete from orders where id > 40; update orders set total = total + 1 where id = 20"
    step(copy, statements, ["incremental", "delta"], "an incremental export and a delta")


def heal(copy):
    """The database was put back: it has forgotten the last two exports, and has other changes now."""
    step(copy, "update orders set customer = 'after the restore' where id = 5", ["full"], "a full export after a restore")
    step(copy, "delete from orders where id = 50; update orders set total = 9 where id = 49", ["delta"], "a delta after a restore")


def empty(copy):
    step(copy, "truncate orders", ["full"], "a full export without rows")
    step(copy, "insert into orders values (7, 'seven', 7)", ["delta"], "a delta behind it")


with duckdb.connect(FOLDER / "copy.duckdb") as opened:
    {"begin": begin, "change": change_more, "heal": heal, "empty": empty}[STAGE](opened)
