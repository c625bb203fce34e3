"""Arrow batches by ADBC, written by pyarrow's csv: QUERY FILE."""

import sys

import adbc_driver_postgresql.dbapi
import pyarrow.csv

query, path = sys.argv[1:]
with adbc_driver_postgresql.dbapi.connect("postgresql://") as connection, connection.cursor() as cursor:
    cursor.execute(query)
    batches = cursor.fetch_record_batch()
    with pyarrow.csv.CSVWriter(path, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
