"""Another program's full copy of the rows of a query: PEER QUERY FILE. The file's ending is its format."""

import os
import pathlib
import sys

peer, query, path = sys.argv[1:]
is_parquet = path.endswith(".parquet")

# Each imports its own library alone, whose start and memory are measured.
match peer:
    case "adbc":
        import adbc_driver_postgresql.dbapi
        import pyarrow.csv

        with adbc_driver_postgresql.dbapi.connect("postgresql://") as connection, connection.cursor() as cursor:
            cursor.execute(query)
            batches = cursor.fetch_record_batch()
            with pyarrow.csv.CSVWriter(path, batches.schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
    case "chdb":
        import chdb

        place, database, user, password = (os.environ[name] for name in ("PGHOST", "PGDATABASE", "PGUSER", "PGPASSWORD"))
        query = query.replace("from users", f"from postgresql('{place}', '{database}', 'users', '{user}', '{password}')")
        form = "Parquet settings output_format_parquet_compression_method = 'zstd'" if is_parquet else "CSVWithNames"
        chdb.query(f"{query} into outfile '{path}' format {form}")
    case "duckdb":
        import duckdb
        import duckdb_extension_postgres_scanner

        extensions = pathlib.Path(duckdb_extension_postgres_scanner.__file__).parent / "extensions"
        duck = duckdb.connect()
        duck.load_extension(str(extensions / f"v{duckdb.__version__}" / "postgres_scanner.duckdb_extension"))
        # It connects by libpq, which takes the variables.
        duck.execute("attach '' as source (type postgres, read_only)")
        duck.execute("use source.public")
        form = "format parquet, compression zstd" if is_parquet else "header"
        duck.execute(f"copy ({query}) to '{path}' ({form})")
    case "psycopg":
        import psycopg

        with psycopg.connect() as connection, connection.cursor() as cursor, open(path, "wb") as file:
            with cursor.copy(f"copy ({query}) to stdout (format csv, header)") as blocks:
                for block in blocks:
                    file.write(block)
    case "sqlalchemy":
        import csv

        import sqlalchemy

        engine = sqlalchemy.create_engine("postgresql+psycopg://")
        with engine.connect() as connection, open(path, "w", newline="", encoding="utf-8") as file:
            result = connection.execution_options(yield_per=10_000).execute(sqlalchemy.text(query))
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(result.keys())
            # Row by row: `partitions` keeps them all.
            writer.writerows(result)
