"""Runs the loaders of docs/guides, with nothing but their constants changed, against a table whose columns change. See guides.sh.

    python tests/guides_columns.py SERVER      with libpq's variables for the service's database, which has the dataset `people`
"""

import glob
import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import psycopg
from pyarrow.parquet import ParquetFile

SERVER = sys.argv[1]
GUIDES = Path(os.environ.get("GUIDES") or Path(__file__).resolve().parent.parent / "docs/guides")
TARGETS = {"postgres": "dbname=people", "duckdb": "people.duckdb", "pandas": "people"}
CONSTANTS = {
    "DATASET": '"people"',
    "TABLE": '"people"',
    "KEY": '"region, id"',
    "COLUMNS": '"region text, id bigint, first text, last text, primary key (region, id)"',
}

for script in GUIDES.glob("*.py"):
    text = script.read_text()
    for name, value in CONSTANTS.items():
        value = '["region", "id"]' if (name, script.name) == ("KEY", "load_pandas.py") else value
        text = re.sub(rf'^{name} = (""".*?"""|.*?$)', f"{name} = {value}", text, flags=re.M | re.S)
    Path(script.name).write_text(text)


def load(which):
    command = [sys.executable, f"load_{which}.py", SERVER, TARGETS[which]]
    return subprocess.run(command, capture_output=True, text=True)


def run(sql, target=""):
    with psycopg.connect(target) as connection:
        connection.execute(sql)


def rows(connection, columns):
    return connection.execute(f"select {columns} from people order by region, id").fetchall()


def check(what, export_type, columns):
    for which in TARGETS:
        loaded = load(which)
        assert not loaded.returncode and loaded.stdout.startswith(f"{export_type}: "), f"{what}: {which}: {loaded}"
    with psycopg.connect("") as source, psycopg.connect(TARGETS["postgres"]) as target:
        expected, postgres = rows(source, columns), rows(target, columns)
    with duckdb.connect(TARGETS["duckdb"], read_only=True) as target:
        made = {"postgres": postgres, "duckdb": rows(target, columns)}
    (file,) = glob.glob(f"{TARGETS['pandas']}/*.parquet")
    frame = ParquetFile(file).read().to_pandas().sort_index().reset_index()
    made["pandas"] = list(frame[columns.split(", ")].itertuples(index=False, name=None))
    for which, found in made.items():
        assert found == expected, f"{what}: {which} differs: {found[:3]}, not {expected[:3]}"
    print(f"ok: {what}: {len(expected)} rows in each")


subprocess.run(["createdb", "people"], check=True)
check("a table of several key columns", "full", "region, id, first, last")

# A column is replaced by another of its name, which is the file's last one then.
run("alter table people add column f2 text; update people set f2 = first where id < 30;"
    "alter table people drop column first; alter table people rename column f2 to first;"
    "update people set first = 'F' where first is null")
check("a column that was replaced", "full", "region, id, first, last")
run("update people set last = 'moved' where id < 10; delete from people where id = 11")
check("and a delta after it", "delta", "region, id, first, last")

# A column comes. Postgres wants it in the target, and says which, each time; then nothing is missing.
run("alter table people add column age integer not null default 7; update people set age = 30 where id = 3")
for reason in ("a full export is next: schemaChanged", ""):
    loaded = load("postgres")
    assert loaded.returncode and 'column "age"' in loaded.stderr and reason in loaded.stderr, loaded
run("alter table people add column age integer", TARGETS["postgres"])
check("a new column", "full", "region, id, first, last, age")
run("update people set age = 40 where id = 4")
check("and a delta with it", "delta", "region, id, first, last, age")

# A column has another name. DuckDB and pandas need nobody.
run("alter table people rename column last to family")
run("alter table people rename column last to family", TARGETS["postgres"])
check("a column of another name", "full", "region, id, first, family, age")
