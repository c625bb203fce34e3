"""Asks a running service for one export in every format and compression, and compares them as other programs read them.

    python tests/formats.py http://localhost:8080      with pyarrow, duckdb and zstandard; guides.sh does that

Needs a table without infinite times and within the years 1 to 9999, as the demo's is: Python's own times end there.
"""

import csv
import gzip
import io
import json
import tempfile
from datetime import datetime

import duckdb
import pyarrow.parquet
import zstandard
from exports import export


def time(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def from_csv(data):
    rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
    return sorted(
        (int(r["id"]), r["name"], r["email"], time(r["created_at"]), time(r["updated_at"]), r["is_deleted"] == "true")
        for r in rows
    )


def from_ndjson(data):
    rows = map(json.loads, data.decode().splitlines())
    return sorted(
        (r["id"], r["name"], r["email"], time(r["created_at"]), time(r["updated_at"]), r["is_deleted"]) for r in rows
    )


def through_duckdb(reader, data, suffix, options=""):
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        duckdb.sql("set timezone = 'UTC'")
        return sorted(
            duckdb.sql(
                f"select id::bigint, name, email, epoch_us(created_at::timestamptz), epoch_us(updated_at::timestamptz), "
                f"is_deleted from {reader}('{file.name}'{options})"
            ).fetchall()
        )


def micros(rows):
    epoch = time("1970-01-01T00:00:00Z")
    count = lambda t: (t - epoch).days * 86_400_000_000 + (t - epoch).seconds * 1_000_000 + (t - epoch).microseconds
    return [(id, name, email, count(created), count(updated), gone) for id, name, email, created, updated, gone in rows]


expected = from_csv(export({}))
assert expected, "the table has no rows"
ndjson = export({"format": "ndjson"})
assert from_ndjson(ndjson) == expected
for form, read in (("csv", from_csv), ("ndjson", from_ndjson)):
    assert read(gzip.decompress(export({"format": form, "compression": "gzip"}))) == expected
    packed = export({"format": form, "compression": "zstd"})
    plain = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True).read()
    assert read(plain) == expected
exact = micros(expected)
csv_bytes = len(export({}))
for compression, codecs in (
    (None, {"ZSTD"}),
    ("zstd", {"ZSTD"}),
    ("snappy", {"SNAPPY"}),
    ("lz4", {"LZ4", "LZ4_RAW"}),
    ("none", {"UNCOMPRESSED"}),
):
    parquet = export({"format": "parquet"} | ({"compression": compression} if compression else {}))
    file = pyarrow.parquet.ParquetFile(io.BytesIO(parquet))
    group = file.metadata.row_group(0)
    assert {group.column(i).compression for i in range(group.num_columns)} <= codecs, group.column(0)
    table = file.read(use_threads=False)
    assert sorted(tuple(row.values()) for row in table.to_pylist()) == expected, compression
    assert through_duckdb("read_parquet", parquet, ".parquet") == exact, compression
    print(f"parquet, {compression or 'the default'}: {len(parquet)} bytes, 1/{csv_bytes / len(parquet):.2f} of the csv")
print(table.schema)
assert through_duckdb("read_json", ndjson, ".ndjson") == exact
# By itself it takes "" for NULL, and guesses at quotes.
dialect = """, quote = '"', escape = '"', header = true, allow_quoted_nulls = false"""
assert through_duckdb("read_csv", export({"compression": "gzip"}), ".csv.gz", dialect) == exact
print(f"{len(expected)} rows, the same in all")
