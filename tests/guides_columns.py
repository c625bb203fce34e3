"""Runs the loaders of docs/guides, with nothing but their constants changed, against a table whose columns change. See guides.sh.

    python tests/guides_columns.py SERVER TRACK…    with libpq's variables for the service's database, which has the dataset `people`

TRACK is the command line that tracks the dataset.
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

SERVER, TRACK = sys.argv[1], sys.argv[2:]
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


def load(which, script="load_{}.py"):
    command = [sys.executable, script.format(which), SERVER, TARGETS[which]]
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
    frame = ParquetFile(file).read().to_pandas().sort_values(["region", "id"])
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

# A loader whose KEY lacks a column would delete rows that nobody deleted: the loader stops in one line, and has asked for no export.
run("update people set family = 'kept' where id = 5")
for which in TARGETS:
    text = Path(f"load_{which}.py").read_text()
    for wrong in (["id"], ["region", "id", "first"]):
        key = str(wrong) if which == "pandas" else repr(", ".join(wrong))
        Path(f"wrong_{which}.py").write_text(re.sub("^KEY = .*", f"KEY = {key}", text, flags=re.M))
        loaded = load(which, "wrong_{}.py")
        expected = f"error: KEY is {', '.join(wrong)}, but the key of the dataset people is region, id\n"
        assert (loaded.returncode, loaded.stdout, loaded.stderr) == (1, "", expected), loaded
# The names may be quoted, and stand in another order.
for which in ("postgres", "duckdb"):
    text = Path(f"load_{which}.py").read_text()
    Path(f"load_{which}.py").write_text(text.replace('KEY = "region, id"', "KEY = '\"id\",\"region\"'"))
check("a delta after a KEY that was wrong", "delta", "region, id, first, family, age")

# A bulk load that leaves the triggers as Postgres gives them back: each run loads a full export, and says that none of them mends it.
run("alter table people disable trigger all; update people set family = 'bulk' where id = 6; alter table people enable trigger all")
for turn in range(2):
    for which in TARGETS:
        loaded = load(which)
        assert loaded.returncode == 1 and loaded.stdout.startswith("full: "), loaded
        assert "`cdc-export track people`" in loaded.stderr.splitlines()[-1], loaded
        assert "Traceback" not in loaded.stderr, loaded
subprocess.run(TRACK, check=True, stdout=subprocess.DEVNULL)
check("triggers that are back", "full", "region, id, first, family, age")
run("update people set family = 'after' where id = 7")
check("and a delta behind them", "delta", "region, id, first, family, age")

# What is no use of a loader is said in one line, at once.
for which in TARGETS:
    for arguments in ([], [SERVER.removeprefix("http://"), TARGETS[which]], [SERVER]):
        loaded = subprocess.run([sys.executable, f"load_{which}.py", *arguments], capture_output=True, text=True)
        assert loaded.returncode == 2 and re.fullmatch(r"usage: python load_.*\.py http://HOST:PORT .*\n", loaded.stderr), loaded
print("ok: a loader that is called in another way")
