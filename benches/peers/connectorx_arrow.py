"""A whole Arrow table by connectorx, written by pyarrow's csv: QUERY FILE."""

import os
import sys
import urllib.parse

import connectorx
import pyarrow.csv

query, path = sys.argv[1:]
user, password, host = (urllib.parse.quote(os.environ[name], safe="") for name in ("PGUSER", "PGPASSWORD", "PGHOST"))
url = f"postgresql://{user}:{password}@{host}/{os.environ['PGDATABASE']}"
pyarrow.csv.write_csv(connectorx.read_sql(url, query, return_type="arrow"), path)
