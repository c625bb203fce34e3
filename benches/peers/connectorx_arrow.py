"""A whole Arrow table by connectorx, written by pyarrow: QUERY FILE. The file's ending is its format."""

import os
import sys
import urllib.parse

import connectorx
import pyarrow.csv
import pyarrow.parquet

query, path = sys.argv[1:]
user, password, host = (urllib.parse.quote(os.environ[name], safe="") for name in ("PGUSER", "PGPASSWORD", "PGHOST"))
url = f"postgresql://{user}:{password}@{host}/{os.environ['PGDATABASE']}"
table = connectorx.read_sql(url, query, return_type="arrow")
if path.endswith(".parquet"):
    pyarrow.parquet.write_table(table, path, compression="zstd")
else:
    pyarrow.csv.write_csv(table, path)
