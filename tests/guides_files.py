"""Runs the loaders of docs/guides, with nothing but their constants changed, on a dataset whose exports have several files. See guides.sh.

    python tests/guides_files.py SERVER      with libpq's variables for the service's database, which has the dataset `orders`
"""

import glob
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import duckdb
import psycopg
from pyarrow.parquet import ParquetFile

SERVER = sys.argv[1]
GUIDES = Path(__file__).resolve().parent.parent / "docs/guides"
TARGETS = {"postgres": "dbname=orders", "duckdb": "orders.duckdb", "pandas": "orders"}
CONSUMERS = {"postgres": "replica", "duckdb": "duckdb", "pandas": "pandas"}
CONSTANTS = {
    "DATASET": '"orders"',
    "TABLE": '"orders"',
    "COLUMNS": '"id bigint primary key, total numeric, note text not null"',
}
FOLDER = Path("loaders of orders")
ALL = "select id, total, note from orders order by id"

FOLDER.mkdir()
for script in GUIDES.glob("*.py"):
    text = script.read_text()
    for name, value in CONSTANTS.items():
        text = re.sub(rf'^{name} = (""".*?"""|.*?$)', f"{name} = {value}", text, flags=re.M | re.S)
    (FOLDER / script.name).write_text(text)


def files_of(which):
    with urllib.request.urlopen(f"{SERVER}/exports?consumer={CONSUMERS[which]}&dataset=orders&limit=1") as answer:
        return len(json.load(answer)["items"][0]["files"])


def check(what, export_type):
    for which, target in TARGETS.items():
        command = [sys.executable, FOLDER / f"load_{which}.py", SERVER, target]
        loaded = subprocess.run(command, capture_output=True, text=True)
        assert not loaded.returncode and loaded.stdout.startswith(f"{export_type}: "), f"{what}: {which}: {loaded}"
        assert files_of(which) > 1, f"{what}: {which} had one file"
    with psycopg.connect("") as source, psycopg.connect(TARGETS["postgres"]) as target:
        expected, postgres = source.execute(ALL).fetchall(), target.execute(ALL).fetchall()
    with duckdb.connect(TARGETS["duckdb"], read_only=True) as target:
        made = {"postgres": postgres, "duckdb": target.execute(ALL).fetchall()}
    (file,) = glob.glob(f"{TARGETS['pandas']}/*.parquet")
    frame = ParquetFile(file).read().to_pandas().sort_values("id")
    made["pandas"] = list(frame[["id", "total", "note"]].itertuples(index=False, name=None))
    for which, rows in made.items():
        assert rows == expected, f"{what}: {which} has {len(rows)} rows, {len(set(rows) ^ set(expected))} of them others"
    print(f"ok: {what}: {len(expected)} orders in each")


subprocess.run(["createdb", "orders"], check=True)
check("a full export of several files", "full")
with psycopg.connect("") as source:
    source.execute("delete from orders where id % 10 = 0; update orders set total = -total")
check("a delta of several files", "delta")
