"""Reads a Parquet of decimals with pyarrow, DuckDB and polars, and holds each value against the CSV of the same rows.

    python tests/decimals.py http://localhost:8080      a service with the dataset `amounts` of decimals.sql; guides.sh does that
"""

import csv
import io
import tempfile
from decimal import Decimal

import duckdb
import polars
import pyarrow
import pyarrow.parquet
from exports import export

DECIMALS = {"price": (10, 2), "whole": (38, 0), "tiny": (38, 38), "dom": (5, 2), "digit": (1, 0), "nine": (9, 4), "ten": (19, 10)}
TEXTS = ["free", "key"]


def from_csv(data):
    rows = {}
    for row in csv.DictReader(io.StringIO(data.decode(), newline="")):
        decimals = [None if row[name] == "" else Decimal(row[name]) for name in DECIMALS]
        rows[int(row["id"])] = (*decimals, *(row[name] or None for name in TEXTS))
    return rows


expected = from_csv(export({"dataset": "amounts", "format": "csv"}))
assert len(expected) == 5000, len(expected)
columns = ["id", *DECIMALS, *TEXTS]
with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
    file.write(export({"dataset": "amounts", "format": "parquet"}))
    file.flush()
    table = pyarrow.parquet.read_table(file.name)
    for name, (precision, scale) in DECIMALS.items():
        assert table.schema.field(name).type == pyarrow.decimal128(precision, scale), table.schema.field(name)
    by_duckdb = duckdb.sql(f"select {', '.join(columns)} from '{file.name}'")
    types = dict(zip(by_duckdb.columns, map(str, by_duckdb.types)))
    for name, (precision, scale) in DECIMALS.items():
        assert types[name] == f"DECIMAL({precision},{scale})", (name, types[name])
    by_polars = polars.read_parquet(file.name).select(columns)
    for name, (precision, scale) in DECIMALS.items():
        assert by_polars.schema[name] == polars.Decimal(precision, scale), (name, by_polars.schema[name])
    for reader, rows in {
        "pyarrow": (tuple(row[name] for name in columns) for row in table.to_pylist()),
        "duckdb": by_duckdb.fetchall(),
        "polars": by_polars.rows(),
    }.items():
        found = {row[0]: tuple(row[1:]) for row in rows}
        wrong = [(key, found.get(key), row) for key, row in expected.items() if found.get(key) != row]
        assert found.keys() == expected.keys() and not wrong, (reader, wrong[:3])
        print(f"{reader}: {len(found)} rows of decimals as in the CSV")
