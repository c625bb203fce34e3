"""ClickHouse in a process reads the table and writes the file: QUERY FILE. The file's ending is its format."""

import os
import sys

import chdb

query, path = sys.argv[1:]
place, database, user, password = (os.environ[name] for name in ("PGHOST", "PGDATABASE", "PGUSER", "PGPASSWORD"))
query = query.replace("from users", f"from postgresql('{place}', '{database}', 'users', '{user}', '{password}')")
form = "Parquet settings output_format_parquet_compression_method = 'zstd'" if path.endswith(".parquet") else "CSVWithNames"
chdb.query(f"{query} into outfile '{path}' format {form}")
