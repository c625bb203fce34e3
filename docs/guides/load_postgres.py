"""Keeps a table of another Postgres equal to the source: `python load_postgres.py SERVER TARGET`."""

import csv
import os
import sys
import tempfile

import psycopg

from exports import Exports, arguments, identity

# All that is to be changed for another table.
DATASET = "users"
CONSUMER = "replica"
TABLE = "users"
KEY = "id"  # the dataset's key, as SQL; of several columns: "region, id"
COLUMNS = """id bigint primary key, name text not null, email text not null,
    created_at timestamptz not null, updated_at timestamptz not null, is_deleted boolean not null"""

SETUP = f"""
    create table if not exists {TABLE} ({COLUMNS});
    create table if not exists loads (loaded text primary key, job_id uuid not null, sha256 text not null);
"""


def columns_of(path):
    """The columns of a file, as its header has them: their order changes when the source replaces one."""
    with open(path, newline="", encoding="utf-8") as file:
        return ['"' + name.replace('"', '""') + '"' for name in next(csv.reader(file))]


def copy(target, table, paths):
    for path in paths:
        columns = ", ".join(columns_of(path))
        with target.cursor().copy(f"copy {table} ({columns}) from stdin with (format csv, header)") as into, open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                into.write(chunk)


server, conninfo = arguments("TARGET")
exports = Exports(server, CONSUMER, "csv", DATASET, key=os.environ.get("CDC_EXPORT_KEY"))
exports.check_key(KEY)
with psycopg.connect(conninfo, autocommit=True) as target, tempfile.TemporaryDirectory() as folder:
    # Two loaders at once would load twice.
    target.execute("select pg_advisory_lock(hashtext('load_postgres'))")
    target.execute(SETUP)
    last = target.execute("select job_id::text, sha256 from loads where loaded = %s", [TABLE]).fetchone()
    for job, paths in exports.catch_up(folder, after=last):
        # The rows and the id of their export are committed together, so that the next run goes on behind it.
        with target.transaction():
            if job["exportType"] == "full":
                target.execute(f"truncate {TABLE}")
                copy(target, TABLE, paths)
            else:
                # Without the table's NOT NULL: of a deleted row perhaps only the key is known.
                target.execute(
                    f"create temporary table delta on commit drop as select text '' as operation, t.* from {TABLE} as t with no data"
                )
                copy(target, "delta", paths)
                target.execute(f"delete from {TABLE} where ({KEY}) in (select {KEY} from delta)")
                columns = ", ".join(columns_of(paths[0])[1:])
                target.execute(f"insert into {TABLE} ({columns}) select {columns} from delta where operation <> 'DELETE'")
            target.execute(
                "insert into loads (loaded, job_id, sha256) values (%s, %s, %s)"
                " on conflict (loaded) do update set job_id = excluded.job_id, sha256 = excluded.sha256",
                [TABLE, job["jobId"], identity(job)],
            )
        for path in paths:
            os.remove(path)
        print(f"{job['exportType']}: {job['rowsExported']} rows")
# What was loaded is loaded; but if the next delta can't be, cron should hear of it.
sys.exit(exports.trouble())
