"""Keeps a table in a DuckDB file equal to the source: `python load_duckdb.py SERVER FILE`."""

import os
import sys
import tempfile

import duckdb

from exports import Exports, arguments, identity

# All that is to be changed for another table.
DATASET = "users"
CONSUMER = "duckdb"
TABLE = "users"
KEY = "id"  # the dataset's key, as SQL; of several columns: "region, id"

server, database = arguments("FILE")
exports = Exports(server, CONSUMER, "parquet", DATASET, key=os.environ.get("CDC_EXPORT_KEY"))
exports.check_key(KEY)
with duckdb.connect(database) as target, tempfile.TemporaryDirectory() as folder:
    target.execute("create table if not exists loads (loaded text primary key, job_id text, sha256 text)")
    last = target.execute("select job_id, sha256 from loads where loaded = ?", [TABLE]).fetchone()
    for job, paths in exports.catch_up(folder, after=last):
        # The rows and the id of their export are committed together, so that the next run goes on behind it.
        target.begin()
        if job["exportType"] == "full":
            # Each column has the type that it has in the source.
            target.execute(f"create or replace table {TABLE} as select * from read_parquet(?)", [paths])
        else:
            target.execute(f"delete from {TABLE} where ({KEY}) in (select {KEY} from read_parquet(?))", [paths])
            live = "select * exclude (operation) from read_parquet(?) where operation <> 'DELETE'"
            target.execute(f"insert into {TABLE} by name {live}", [paths])
        target.execute("insert or replace into loads values (?, ?, ?)", [TABLE, job["jobId"], identity(job)])
        target.commit()
        for path in paths:
            os.remove(path)
        print(f"{job['exportType']}: {job['rowsExported']} rows")
# What was loaded is loaded; but if the next delta can't be, cron should hear of it.
sys.exit(exports.trouble())
