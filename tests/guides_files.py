"""Keeps copies of a table whose exports have several files, as docs/guides/loading.md says. See guides.sh.

    python tests/guides_files.py SERVER      with libpq's variables for the service's database, which has the dataset `orders`
"""

import json
import sys
import urllib.request

import psycopg
from loaders import TARGETS, Copy, types

SERVER = sys.argv[1]
COLUMNS = "id, total, note"
ORDERS = Copy(SERVER, "orders", "orders")


def check(what, expected):
    """Brings each target up to date with an export of this type and several files."""
    with psycopg.connect("") as connection:
        rows = connection.execute(f"select {COLUMNS} from orders order by id").fetchall()
    for which in TARGETS:
        load = ORDERS.update(which)
        assert types(load) == [expected], f"{what}: {which}: {load}"
        with urllib.request.urlopen(f"{SERVER}/exports?consumer={which}&dataset=orders&limit=1") as answer:
            (job,) = json.load(answer)["items"]
        assert len(job.get("exports", [job])[0]["files"]) > 1, f"{what}: {which} had one file"
        made = ORDERS.rows(which, COLUMNS, "id")
        assert made == rows, f"{what}: {which} has {len(made)} rows, {len(set(made) ^ set(rows))} of them others"
    print(f"ok: {what}: {len(rows)} orders in each")


check("a first export of several files", "delta")
with psycopg.connect("") as connection:
    connection.execute("delete from orders where id % 10 = 0; update orders set total = -total")
check("a delta of several files", "delta")
with psycopg.connect("") as connection:
    connection.execute("create table kept as select * from orders; truncate orders; insert into orders select * from kept")
    connection.execute("insert into orders select -id, total, note from kept where id % 9 = 0")
check("a full export of several files", "full")
