"""Rows of a server-side cursor by SQLAlchemy's core, written by Python's csv: QUERY FILE."""

import csv
import sys

import sqlalchemy

query, path = sys.argv[1:]
engine = sqlalchemy.create_engine("postgresql+psycopg://")
with engine.connect() as connection, open(path, "w", newline="", encoding="utf-8") as file:
    result = connection.execution_options(yield_per=10_000).execute(sqlalchemy.text(query))
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(result.keys())
    # Row by row: `partitions` keeps them all.
    writer.writerows(result)
