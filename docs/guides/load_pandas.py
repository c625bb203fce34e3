"""Keeps a DataFrame in a Parquet file equal to the source: `python load_pandas.py INBOX FILE`."""

import os

import pandas
import pyarrow
from pyarrow.parquet import ParquetFile, write_table

from inbox import Inbox, arguments, need_full


def read(paths, key):
    # `pandas.read_parquet` hands Arrow's threads a Python file. A thread that lets go of it while Python ends aborts the process
    # (https://github.com/apache/arrow/issues/34314); a file that Arrow opens itself has no such end.
    # By default pandas makes floats of a column of integers that has a NULL, which rounds those beyond 2^53, and NULL of NaN.
    rows = pyarrow.concat_tables([ParquetFile(path).read() for path in paths])
    frame = rows.to_pandas(types_mapper=pandas.ArrowDtype, ignore_metadata=True)
    # A dataset without a key has full exports alone.
    return frame.set_index(key) if key else frame


def types(path):
    return {field.name: field.type for field in ParquetFile(path).schema_arrow}


def write(frame, path, loaded):
    # What pandas notes of its own types it can't read again of each, as of a uuid. The file has in its place which export was loaded
    # last, so that the rows and that are there at once.
    table = pyarrow.Table.from_pandas(frame.reset_index(drop=frame.index.names == [None]), preserve_index=False).replace_schema_metadata(loaded)
    write_table(table, f"{path}.part")
    sync(f"{path}.part")
    os.replace(f"{path}.part", path)
    sync(os.path.dirname(os.path.abspath(path)))


def sync(path):
    """Waits until a file, or the names in a folder, are on disk. The export is removed then."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


folder, file = arguments("INBOX FILE")
inbox = Inbox(folder)
kept = os.path.exists(file) and ParquetFile(file).schema_arrow.metadata or {}
job, digest = (kept.get(name, b"").decode() for name in (b"job", b"digest"))
for export in inbox.exports(digest):
    rows = frame = read(export.files, export.key)
    if export.operation:
        frame = rows[rows[export.operation] != "DELETE"]
    frame = frame[[column for column in export.columns if column not in export.key]]
    if not export.replaces:
        # The values of a new column in rows that nobody changed are in no delta.
        found = types(export.files[0])
        if {column: found[column] for column in export.columns} != types(file):
            need_full(f"the export {export.number} has other columns")
        frame = pandas.concat([read([file], export.key).drop(index=rows.index, errors="ignore"), frame])
    job = export.job
    write(frame, file, {"job": job, "digest": export.digest})
# For `POST /exports/{jobId}/ack`.
print(job)
