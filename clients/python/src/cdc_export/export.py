"""An export whose files are on this machine, and its rows with their types."""

import itertools
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import compute, csv, parquet

from cdc_export.client import Error, Manifest

_BATCH_ROWS = 65_536
_TYPES = {
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "boolean": pa.bool_(),
    "uuid": pa.uuid(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "time without time zone": pa.time64("us"),
    "timestamp without time zone": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
}


class Position(NamedTuple):
    """What a loader remembers of the export that it loaded last. All members are texts, so JSON can hold it. The next
    export has a higher `order`, unless the loader leaves it out: its copy doesn't go by it."""

    job: str
    digest: str
    source: str
    order: str = ""


class Export:
    """An export. Its files are removed when the next export is asked for."""

    def __init__(self, manifest: Manifest, files: Sequence[Path]):
        export = manifest["export"]
        self.manifest, self.files = manifest, files
        self.dataset: str = export["dataset"]
        self.job: str = export["job"] if isinstance(export["job"], str) else export["job"]["id"]
        self.number: int = manifest["number"]
        self.type: str = export["type"]
        self.rows = int(export["rows"])
        # The columns that tell rows apart. Empty for a dataset that has full exports alone.
        self.key: list[str] = export["key"]
        # The table's columns: a delta has the operation in front.
        own = export["columns"][self.type == "delta" :]
        self.columns: list[str] = [column["name"] for column in own if "meta" not in column]
        # Whether it has all rows, so that it replaces what was loaded before. The first export has them, too.
        self.replaces = self.type == "full" or (export["watermarkFrom"], export["previous"]) == (None, None)
        source = f"{export['source']['cluster']}/{export['source']['database']}"
        self.position = Position(self.job, manifest["digest"], source, export.get("order", ""))

    def batches(self) -> Iterator[tuple[pa.Array, pa.RecordBatch]]:
        """Yields the rows, with the operation of each apart: `INSERT`, `UPDATE` or `DELETE` in a delta, else `READ`. Of
        a row with `DELETE` only the key counts. The first batch is empty."""
        rows = 0
        try:
            for batch in itertools.chain.from_iterable(map(self._read, self.files)):
                rows += batch.num_rows
                operations = batch.column(0) if self.type == "delta" else pa.repeat("READ", batch.num_rows)
                yield operations, batch.select(self.columns)
        except pa.ArrowInvalid as error:
            raise Error("not_in_format", f"the export {self.job} of {self.dataset}: {error}") from error
        if rows != self.rows:
            raise Error("changed", f"the export {self.job} has {rows} rows, and its manifest says {self.rows}")

    def read(self) -> tuple[pa.Table, pa.Table]:
        """Returns the rows to keep, and the keys of all rows. Remove these keys from a copy, and add the rows."""
        rows, keys = [], []
        for operations, batch in self.batches():
            keys.append(batch.select(self.key))
            rows.append(batch.filter(compute.not_equal(operations, "DELETE")))
        return pa.Table.from_batches(rows), pa.Table.from_batches(keys)

    def _read(self, path: Path) -> Iterator[pa.RecordBatch]:
        """Yields the batches of a file, at least one."""
        export = self.manifest["export"]
        if export["format"] == "parquet":
            file = parquet.ParquetFile(path, arrow_extensions_enabled=True)
            yield from map(_without_json, itertools.chain([_empty(file.schema_arrow)], file.iter_batches(_BATCH_ROWS)))
            return
        types = {column["name"]: _type_of(column) for column in export["columns"]}
        convert = csv.ConvertOptions(
            column_types={name: pa.string() if kind in _FROM_TEXT else kind for name, kind in types.items()},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        schema = pa.schema(types.items())
        yield _empty(schema)
        compression = None if export["compression"] == "none" else export["compression"]
        parse = csv.ParseOptions(newlines_in_values=True)
        with pa.input_stream(str(path), compression=compression) as stream:
            for batch in csv.open_csv(stream, parse_options=parse, convert_options=convert):
                columns = zip(schema.types, batch.columns, strict=True)
                arrays = [_FROM_TEXT.get(kind, pa.array)(column) for kind, column in columns]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    # `pa.array` would import pandas, which takes 50 MB.
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def _type_of(column: dict[str, Any]) -> pa.DataType:
    """Returns the type that the column has in Parquet too, unless the dataset's options say otherwise."""
    name = column.get("base", column["type"])
    if match := re.fullmatch(r"numeric\((\d+),(-?\d+)\)", name):
        precision, scale = map(int, match.groups())
        if precision <= 38 and 0 <= scale <= precision:
            return pa.decimal128(precision, scale)
    # The precision of times, as in `timestamp(3) without time zone`, changes nothing.
    return _TYPES.get(re.sub(r"\(\d+\)", "", name), pa.string())


def _bytes(array: pa.Array) -> pa.Array:
    values = [None if text is None else bytes.fromhex(text[2:]) for text in array.to_pylist()]
    return pa.array(values, pa.binary())


def _uuids(array: pa.Array) -> pa.Array:
    values = [None if text is None else uuid.UUID(text).bytes for text in array.to_pylist()]
    return pa.ExtensionArray.from_storage(pa.uuid(), pa.array(values, pa.binary(16)))


# pyarrow reads neither of these from CSV.
_FROM_TEXT = {pa.binary(): _bytes, pa.uuid(): _uuids}


def _without_json(batch: pa.RecordBatch) -> pa.RecordBatch:
    """JSON is text, as in CSV."""
    for at, field in enumerate(batch.schema):
        if getattr(field.type, "extension_name", None) == "arrow.json":
            batch = batch.set_column(at, field.name, batch.column(at).storage.cast(pa.string()))
    return batch
