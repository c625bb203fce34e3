"""Appends exports as docs/guides/append.md says, and compares the current rows in three programs with the table. append.sh calls it.

    python tests/append.py SERVER FOLDER STAGE

The copies are in FOLDER, and outlive a stage.
"""

import json
import re
import sys
import urllib.request
from decimal import Decimal
from pathlib import Path

import duckdb
import psycopg
from chdb import session

SERVER, FOLDER, STAGE = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
PAGE = (Path(__file__).resolve().parent.parent / "docs/guides/append.md").read_text()
TABLES, POSTGRES, DUCKDB, CLICKHOUSE, TIDY = re.findall(r"^```sql\n(.*?)^```$", PAGE, flags=re.M | re.S)
ROWS = "select id, customer, total from {} order by id"


def call(method, path, body=None):
    request = urllib.request.Request(SERVER + path, method=method, data=body and json.dumps(body).encode())
    request.add_header("X-Consumer-ID", "lake")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=90) as answer:
        return json.load(answer)


def export(kind):
    """Returns the manifest of an export, or None if only a full export goes on."""
    job = call("POST", f"/exports/{kind}", {"dataset": "orders", "format": "parquet"})
    job = call("GET", f"/exports/{job['jobId']}?wait=60")
    if job["error"] and job["error"]["code"] == "full_export_needed":
        return None
    assert job["status"] == "completed", job
    manifest = call("GET", f"/exports/{job['jobId']}/manifest")
    assert manifest["export"]["order"] == str(job["order"]), manifest
    return manifest


def append(manifest, copy):
    """Adds an export to the copy in DuckDB, and its line, in one transaction."""
    export = manifest["export"]
    paths = [entry["url"].removeprefix("file://") for entry in manifest["entries"]]
    copy.begin()
    columns = "_order, _operation, id, customer, total"
    copy.execute(f"insert into orders_log ({columns}) select {columns} from read_parquet(?)", [paths])
    copy.execute("insert into orders_exports values (?, ?)", [int(export["order"]), export["type"]])
    copy.commit()


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


def begin(copy):
    for statement in (*TABLES.split(";")[:-1], DUCKDB):
        copy.execute(statement)
    append(export("full"), copy)
    compare(copy, "a full export")
    change("update orders set total = null where id = 1; delete from orders where id in (2, 3); insert into orders values (51, null, 1)")
    append(export("delta"), copy)
    compare(copy, "a delta")


def change_more(copy):
    change("update orders set customer = 'other' where id < 10; insert into orders values (2, 'again', 0)")
    append(export("incremental"), copy)
    compare(copy, "an incremental export")
    change("delete from orders where id > 40; update orders set total = total + 1 where id = 20")
    append(export("delta"), copy)
    compare(copy, "a delta")


def heal(copy):
    """The database was put back: it has forgotten the last two exports, and has other changes now."""
    change("update orders set customer = 'after the restore' where id = 5")
    assert export("delta") is None, "a delta goes on from what the database has forgotten"
    append(export("full"), copy)
    compare(copy, "a full export after a restore")
    change("delete from orders where id = 50; update orders set total = 9 where id = 49")
    append(export("delta"), copy)
    compare(copy, "a delta after a restore")


def empty(copy):
    change("truncate orders")
    append(export("full"), copy)
    compare(copy, "a full export without rows")
    change("insert into orders values (7, 'seven', 7)")
    append(export("delta"), copy)
    compare(copy, "a delta behind it")


with duckdb.connect(FOLDER / "copy.duckdb") as opened:
    {"begin": begin, "change": change_more, "heal": heal, "empty": empty}[STAGE](opened)
