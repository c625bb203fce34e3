"""Keeps a DataFrame on disk equal to the source: `python load_pandas.py SERVER FOLDER`."""

import fcntl
import glob
import os
import sys
import tempfile

import pandas
import pyarrow
from pyarrow.parquet import ParquetFile, write_table

from exports import Exports, arguments, identity

# All that is to be changed for another table.
DATASET = "users"
CONSUMER = "pandas"
KEY = ["id"]  # the dataset's key


def read(*paths):
    # `pandas.read_parquet` hands Arrow's threads a Python file. A thread that lets go of it while Python ends aborts the process
    # (https://github.com/apache/arrow/issues/34314); a file that Arrow opens itself has no such end.
    # By default pandas makes floats of a column of integers that has a NULL, which rounds those beyond 2^53, and NULL of NaN.
    rows = pyarrow.concat_tables([ParquetFile(path).read() for path in paths])
    return rows.to_pandas(types_mapper=pandas.ArrowDtype, ignore_metadata=True).set_index(KEY)


def write(frame, path):
    table = pyarrow.Table.from_pandas(frame.reset_index(), preserve_index=False)
    # What pandas notes of its own types it can't read again of each, as of a uuid.
    write_table(table.replace_schema_metadata(None), path)


server, folder = arguments("FOLDER")
exports = Exports(server, CONSUMER, "parquet", DATASET, key=os.environ.get("CDC_EXPORT_KEY"))
exports.check_key(KEY)
os.makedirs(folder, exist_ok=True)
# Two loaders at once would load twice: the second one waits. The lock ends with the process, however that ends.
lock = open(f"{folder}/{DATASET}.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
# The frame's file has the last export's id and SHA-256 in its name, so that both are there at once.
kept = max(glob.glob(f"{folder}/{DATASET}.*.*.parquet"), default=None, key=os.path.getmtime)
frame = read(kept) if kept else None
last = kept.split(".")[-3:-1] if kept else None
with tempfile.TemporaryDirectory() as inbox:
    for job, paths in exports.catch_up(inbox, after=last):
        rows = read(*paths)
        if job["exportType"] == "full":
            frame = rows
        else:
            live = rows[rows["operation"] != "DELETE"].drop(columns="operation")
            frame = pandas.concat([frame.drop(index=rows.index, errors="ignore"), live])
        print(f"{job['exportType']}: {job['rowsExported']} rows")
        last = (job["jobId"], identity(job))
written = f"{folder}/{DATASET}.{'.'.join(last)}.parquet"
write(frame, f"{written}.part")
os.replace(f"{written}.part", written)
for old in set(glob.glob(f"{folder}/{DATASET}.*.*.parquet*")) - {written}:
    os.remove(old)
print(f"{len(frame)} rows in all")
# What was loaded is loaded; but if the next delta can't be, cron should hear of it.
sys.exit(exports.trouble())
