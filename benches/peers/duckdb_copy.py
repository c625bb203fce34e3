"""DuckDB's COPY of a query that its extension for Postgres reads: QUERY FILE. The file's ending is its format."""

import pathlib
import sys

import duckdb
import duckdb_extension_postgres_scanner

query, path = sys.argv[1:]
extensions = pathlib.Path(duckdb_extension_postgres_scanner.__file__).parent / "extensions"
duck = duckdb.connect()
duck.load_extension(str(extensions / f"v{duckdb.__version__}" / "postgres_scanner.duckdb_extension"))
# It connects by libpq, which takes the variables.
duck.execute("attach '' as source (type postgres, read_only)")
duck.execute("use source.public")
form = "format parquet, compression zstd" if path.endswith(".parquet") else "header"
duck.execute(f"copy ({query}) to '{path}' ({form})")
