"""Keeps a DataFrame on disk equal to the source: `python load_pandas.py SERVER FOLDER`."""

import glob
import os
import sys
import tempfile

import pandas

from exports import Exports

server, folder = sys.argv[1:]
exports = Exports(server, "pandas", "parquet", key=os.environ.get("CDC_EXPORT_KEY"))
os.makedirs(folder, exist_ok=True)
# The frame's file has the last export's id and SHA-256 in its name, so that both are there at once.
kept = max(glob.glob(f"{folder}/users.*.parquet"), default=None, key=os.path.getmtime)
users = pandas.read_parquet(kept) if kept else None
last = (os.path.basename(kept).split(".")[1:-1] + [None])[:2] if kept else None
with tempfile.TemporaryDirectory() as inbox:
    for job, path in exports.catch_up(inbox, after=last):
        rows = pandas.read_parquet(path).set_index("id")
        if job["exportType"] == "full":
            users = rows
        else:
            live = rows[rows["operation"] != "DELETE"].drop(columns="operation")
            users = pandas.concat([users.drop(index=rows.index, errors="ignore"), live])
        print(f"{job['exportType']}: {job['rowsExported']} rows")
        last = (job["jobId"], job["sha256"])
written = f"{folder}/users.{'.'.join(last)}.parquet"
users.to_parquet(f"{written}.part")
os.replace(f"{written}.part", written)
for old in set(glob.glob(f"{folder}/users.*.parquet*")) - {written}:
    os.remove(old)
print(f"{len(users)} users, last changed {users['updated_at'].max()}")
