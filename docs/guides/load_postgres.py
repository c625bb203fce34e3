"""Keeps a table of another Postgres equal to the source: `python load_postgres.py SERVER TARGET`."""

import os
import sys
import tempfile

import psycopg

from exports import Exports

SETUP = """
    create table if not exists users (id bigint primary key, name text not null, email text not null,
        created_at timestamptz not null, updated_at timestamptz not null, is_deleted boolean not null);
    create table if not exists loaded_exports (consumer text primary key, job_id uuid not null);
    alter table loaded_exports add column if not exists sha256 text;
"""


def copy(target, table, path):
    with target.cursor().copy(f"copy {table} from stdin with (format csv, header)") as into, open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            into.write(chunk)


server, conninfo = sys.argv[1:]
exports = Exports(server, "replica", "csv", key=os.environ.get("CDC_EXPORT_KEY"))
with psycopg.connect(conninfo, autocommit=True) as target, tempfile.TemporaryDirectory() as folder:
    # Two loaders at once would load twice.
    target.execute("select pg_advisory_lock(hashtext('load_postgres'))")
    target.execute(SETUP)
    last = target.execute(
        "select job_id::text, sha256 from loaded_exports where consumer = %s", [exports.consumer]
    ).fetchone()
    for job, path in exports.catch_up(folder, after=last):
        # The rows and the name of what they came from, both or neither: the next run begins behind it.
        with target.transaction():
            if job["exportType"] == "full":
                target.execute("truncate users")
                copy(target, "users", path)
            else:
                # Without the table's NOT NULL: of a deleted row perhaps only the key is known.
                target.execute(
                    "create temporary table delta on commit drop as select text '' as operation, users.* from users with no data"
                )
                copy(target, "delta", path)
                target.execute("delete from users using delta where users.id = delta.id")
                target.execute(
                    "insert into users select id, name, email, created_at, updated_at, is_deleted from delta"
                    " where operation <> 'DELETE'"
                )
            target.execute(
                "insert into loaded_exports (consumer, job_id, sha256) values (%s, %s, %s)"
                " on conflict (consumer) do update set job_id = excluded.job_id, sha256 = excluded.sha256",
                [exports.consumer, job["jobId"], job["sha256"]],
            )
        os.remove(path)
        print(f"{job['exportType']}: {job['rowsExported']} rows")
