"""Keeps a table in a DuckDB file equal to the source: `python load_duckdb.py SERVER FILE`."""

import os
import sys
import tempfile

import duckdb

from exports import Exports

server, database = sys.argv[1:]
exports = Exports(server, "duckdb", "parquet", key=os.environ.get("CDC_EXPORT_KEY"))
with duckdb.connect(database) as target, tempfile.TemporaryDirectory() as folder:
    target.execute("create table if not exists loaded_exports (job_id text)")
    target.execute("alter table loaded_exports add column if not exists sha256 text")
    last = target.execute("select job_id, sha256 from loaded_exports").fetchone()
    for job, path in exports.catch_up(folder, after=last):
        # The rows and the name of what they came from, both or neither: the next run begins behind it.
        target.begin()
        if job["exportType"] == "full":
            # Each column has the type that it has in the source.
            target.execute("create or replace table users as select * from read_parquet(?)", [path])
        else:
            target.execute("delete from users where id in (select id from read_parquet(?))", [path])
            live = "select * exclude (operation) from read_parquet(?) where operation <> 'DELETE'"
            target.execute(f"insert into users by name {live}", [path])
        target.execute("delete from loaded_exports")
        target.execute("insert into loaded_exports (job_id, sha256) values (?, ?)", [job["jobId"], job["sha256"]])
        target.commit()
        os.remove(path)
        print(f"{job['exportType']}: {job['rowsExported']} rows")
