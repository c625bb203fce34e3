"""Many tables, and many rows."""

import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
from conftest import Service
from test_duckdb import SOURCE, same

from cdc_export import Client, jobs
from cdc_export.duckdb import _Target, load_duckdb

pytestmark = pytest.mark.slow


# A process inherits the peak memory of the one that starts it, which is therefore a small one.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_a_hundred_tables_load_in_one_process(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "many.duckdb"
    names = [f"many_{n}" for n in range(100)]
    service.tables(1000, **dict.fromkeys(names, "v text"))
    arguments = [sys.executable, "-m", "cdc_export", "duckdb", path, "--consumer", "many", "--url", service.url]
    named = [part for name in names for part in ("--dataset", name)]
    launch, environment = [sys.executable, "-c", LAUNCHER, *arguments, *named], {"PYTHONPATH": str(SOURCE)}
    began = time.monotonic()
    printed = subprocess.run(launch, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, megabytes = time.monotonic() - began, int(printed.split()[-1]) / 1024
    print(f"100 tables of 1,000 rows: {seconds:.1f} s, {megabytes:.0f} MB")
    assert printed.count("1000 rows written") == 100
    same(service, path, "many_0", "many_99")
    assert seconds < 30 and megabytes < 250


ROWS = 1_200_000
TYPES = {"operation": "varchar", "id": "bigint", "v": "varchar", "total": "decimal(18,2)", "at": "timestamptz"}


def test_a_delta_of_a_million_rows_is_as_fast_as_duckdb(service: Service, client: Client, tmp_path: Path) -> None:
    """Both load the same file, in turns: ours by `jobs`, from where the file is fetched, and DuckDB by SQL alone."""
    service.tables(million="v text, total numeric(18,2), at timestamptz")
    rows = f"select i, 'customer ' || i % 1000, i / 4.0, now() from generate_series(1, {ROWS}) i"
    service.sql(f"insert into shop.million {rows}")
    paths = {name: tmp_path / f"{name}.duckdb" for name in ("parquet", "csv", "own")}
    for name, path in paths.items():
        load_duckdb(client, name, path, ["million"], format="csv" if name == "own" else name)
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(3):
        service.sql(f"update shop.million set total = {turn} where id <= 1000000")
        for name, path in paths.items():
            with duckdb.connect(str(path)) as connection:
                target = _Target(connection, name, "main")
                form = "csv" if name == "own" else name
                for exports in jobs(client, name, ["million"], target.positions, form):
                    began = time.monotonic()
                    if name == "own":
                        load_by_sql(connection, str(exports[0].files[0]))
                        seconds[name].append(time.monotonic() - began)
                        target._remember(exports[0])
                    else:
                        target.load(exports)
                        seconds[name].append(time.monotonic() - began)
    print({name: [round(second, 2) for second in found] for name, found in seconds.items()})
    for path in paths.values():
        same(service, path, "million")
    assert min(seconds["parquet"]) < 1.3 * min(seconds["own"]) and min(seconds["csv"]) < 1.3 * min(seconds["own"])


def load_by_sql(connection: duckdb.DuckDBPyConnection, file: str) -> None:
    connection.begin()
    read = "read_csv(?, header = true, nullstr = '', allow_quoted_nulls = false, columns = ?)"
    connection.execute(f"create temp table delta as from {read}", [file, TYPES]).fetchall()
    connection.execute("delete from million using delta where million.id = delta.id").fetchall()
    columns = 'id, v, total, "at"'
    connection.execute(f"insert into million select {columns} from delta where operation <> 'DELETE'").fetchall()
    connection.execute("drop table delta").fetchall()
    connection.commit()
