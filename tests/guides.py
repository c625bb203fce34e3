"""Runs the loaders of docs/guides against a service with the demo table, and compares what they have made. See guides.sh.

    python tests/guides.py SERVER      with libpq's variables for the service's database
"""

import glob
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas
import psycopg

SERVER = sys.argv[1]
ROOT = Path(__file__).resolve().parent.parent
GUIDES = ROOT / "docs/guides"
COLUMNS = "id, name, email, created_at, updated_at, is_deleted"
sys.path.insert(0, str(GUIDES))
from exports import Exports  # noqa: E402

TARGETS = {"postgres": "dbname=target", "duckdb": "target.duckdb", "pandas": "frames"}


def load(which):
    command = [sys.executable, GUIDES / f"load_{which}.py", SERVER, TARGETS[which]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{which}: {done.stderr}"
    return done.stdout


def of_postgres(conninfo, where):
    micros = "(extract(epoch from {0}) * 1000000)::bigint"
    columns = f"id, name, email, {micros.format('created_at')}, {micros.format('updated_at')}, is_deleted"
    with psycopg.connect(conninfo) as connection:
        return connection.execute(f"select {columns} from users where {where} order by id").fetchall()


def of_duckdb():
    columns = "id, name, email, epoch_us(created_at), epoch_us(updated_at), is_deleted"
    with duckdb.connect(TARGETS["duckdb"], read_only=True) as connection:
        return connection.execute(f"select {columns} from users order by id").fetchall()


def of_pandas():
    (file,) = glob.glob(f"{TARGETS['pandas']}/users.*.parquet")
    users = pandas.read_parquet(file).sort_index().reset_index()
    for column in ("created_at", "updated_at"):
        users[column] = users[column].astype("datetime64[us, UTC]").astype("int64")
    return list(users[[column.strip() for column in COLUMNS.split(",")]].itertuples(index=False, name=None))


def check(what):
    said = {which: load(which) for which in TARGETS}
    source = of_postgres("", "not is_deleted")
    made = {"postgres": of_postgres(TARGETS["postgres"], "true"), "duckdb": of_duckdb(), "pandas": of_pandas()}
    for which, rows in made.items():
        differing = set(map(tuple, source)) ^ set(map(tuple, rows))
        assert not differing and len(rows) == len(source), f"{what}: {which} differs: {sorted(differing)[:3]}"
    print(f"ok: {what}: {len(source)} users in each")
    return said


def run(sql):
    with psycopg.connect("", autocommit=True) as source:
        for statement in sql:
            source.execute(statement)


def psql(*arguments):
    subprocess.run(["psql", "-q", "-v", "ON_ERROR_STOP=1", *arguments], check=True)


run(["create database target"])
said = check("a first load")
assert all(text.startswith("full: ") for text in said.values()), said
said = check("nothing new")
assert all(text.startswith("delta: 0 rows") for text in said.values()), said

psql("-f", ROOT / "seeds/awkward.sql")
psql("-f", ROOT / "seeds/changes.sql")
run([
    "delete from users where id % 97 = 0",
    "update users set name = upper(name) where id % 89 = 0",
    "update users set is_deleted = not is_deleted, updated_at = now() where id % 83 = 0",
    # A value that must be unique changes its owner.
    "update users set email = 'away' where id = 1; update users set email = 'users@2' where id = 2",
    "update users set email = 'users@2b' where id = 2; update users set email = 'users@2' where id = 1",
])
said = check("changes")
assert all(text.startswith("delta: ") for text in said.values()), said

# A loader that died between its export and its load.
for which, format in (("replica", "csv"), ("duckdb", "parquet"), ("pandas", "parquet")):
    Exports(SERVER, which, format).run("delta")
run(["update users set name = 'later', updated_at = now() where id % 79 = 0"])
said = check("an export that nobody had loaded")
assert all(text.count("delta: ") == 2 for text in said.values()), said

# Deltas that somebody asked for by hand, in another format than the loader reads: what is in them is in no other.
run(["update users set name = 'by hand', updated_at = now() where id % 71 = 0"])
for which in ("replica", "duckdb", "pandas"):
    Exports(SERVER, which, "ndjson").run("delta")
said = check("an export by another hand")
assert all(text.startswith("full: ") for text in said.values()), said

# A loader that was away for longer than its exports are kept.
run(["update users set name = 'pruned', updated_at = now() where id % 73 = 0"])
for which, format in (("replica", "csv"), ("duckdb", "parquet"), ("pandas", "parquet")):
    Exports(SERVER, which, format).run("delta")
run(["delete from exports where consumer_id in ('replica', 'duckdb', 'pandas')"])
said = check("exports that are not kept any more")
assert all(text.startswith("full: ") for text in said.values()), said

run(["truncate users", "insert into users (name, email, created_at, updated_at) "
     "select 'n' || i, 'e' || i, now(), now() from generate_series(1, 500) as i"])
said = check("a TRUNCATE")
assert all(text.startswith("full: ") for text in said.values()), said
