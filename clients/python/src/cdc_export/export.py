"""An export whose files are on this machine, and its rows with their types."""

from __future__ import annotations

import itertools
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import compute, csv, parquet

from cdc_export.client import Error, Manifest

_BATCH_ROWS = 65_536
_MAX_DECIMAL_DIGITS = 38
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
    """What a loader remembers of the export that it loaded last. All members are texts, so JSON can hold it."""

    job: str
    digest: str
    source: str


@dataclass(frozen=True)
class Export:
    """An export. Its files are removed when the next export is asked for."""

    dataset: str
    manifest: Manifest
    files: Sequence[Path]

    @property
    def job(self) -> str:
        job = self.manifest["export"]["job"]
        return str(job if isinstance(job, str) else job["id"])

    @property
    def number(self) -> int:
        return int(self.manifest["number"])

    @property
    def type(self) -> str:
        return str(self.manifest["export"]["type"])

    @property
    def rows(self) -> int:
        return int(self.manifest["export"]["rows"])

    @property
    def key(self) -> list[str]:
        """The columns that tell rows apart. Empty for a dataset that has full exports alone."""
        return list(self.manifest["export"]["key"])

    @property
    def replaces(self) -> bool:
        """Whether the export has all rows, so that it replaces what was loaded before: a full export, and the first
        export of a consumer, whatever its type."""
        export = self.manifest["export"]
        return export["type"] == "full" or (export["watermarkFrom"], export["previous"]) == (None, None)

    @property
    def position(self) -> Position:
        source = self.manifest["export"]["source"]
        return Position(self.job, self.manifest["digest"], f"{source['cluster']}/{source['database']}")

    @property
    def columns(self) -> list[dict[str, Any]]:
        """The table's columns, without `operation` and those of `meta`."""
        columns = self.manifest["export"]["columns"][self._operations :]
        return [column for column in columns if "meta" not in column]

    @property
    def _operations(self) -> int:
        """How many columns a delta has in front that say what became of a row."""
        return int(self.type == "delta")

    def batches(self) -> Iterator[tuple[pa.Array | None, pa.RecordBatch]]:
        """Yields the rows, with the operation of each apart: `INSERT`, `UPDATE` or `DELETE` in a delta, else None. Of
        a row with `DELETE` only the key counts. There is at least one batch, which may be empty."""
        names = [column["name"] for column in self.columns]
        rows = 0
        try:
            for batch in itertools.chain.from_iterable(map(self._read, self.files)):
                rows += batch.num_rows
                yield batch.column(0) if self._operations else None, batch.select(names)
        except pa.ArrowInvalid as error:
            raise Error("not_in_format", f"the export {self.job} of {self.dataset}: {error}") from error
        if rows != self.rows:
            raise Error("changed", f"the export {self.job} has {rows} rows, and its manifest says {self.rows}")

    def read(self) -> tuple[pa.Table, pa.Table]:
        """Returns the rows to keep, and the keys of all rows. Remove these keys from a copy, and add the rows."""
        rows, keys = [], []
        for operation, batch in self.batches():
            keys.append(batch.select(self.key))
            rows.append(batch if operation is None else batch.filter(compute.not_equal(operation, "DELETE")))
        return pa.Table.from_batches(rows), pa.Table.from_batches(keys)

    def _read(self, path: Path) -> Iterator[pa.RecordBatch]:
        form = self.manifest["export"]["format"]
        if form == "parquet":
            file = parquet.ParquetFile(path, arrow_extensions_enabled=True)
            yield from map(_without_json, file.iter_batches(_BATCH_ROWS))
            if not file.metadata.num_rows:
                yield _without_json(pa.RecordBatch.from_pylist([], file.schema_arrow))
        else:
            yield from self._read_csv(path)

    def _read_csv(self, path: Path) -> Iterator[pa.RecordBatch]:
        export = self.manifest["export"]
        types = {column["name"]: _type_of(column) for column in export["columns"]}
        # pyarrow reads no bytes and no uuid from CSV.
        as_text = {pa.binary(): _bytes, pa.uuid(): _uuids}
        convert = csv.ConvertOptions(
            column_types={name: pa.string() if kind in as_text else kind for name, kind in types.items()},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        compression = export["compression"]
        with pa.input_stream(str(path), compression=None if compression == "none" else compression) as stream:
            parse = csv.ParseOptions(newlines_in_values=True)
            reader = csv.open_csv(stream, parse_options=parse, convert_options=convert)
            schema = pa.schema(types.items())
            is_empty = True
            for batch in reader:
                arrays = [
                    as_text[field.type](array) if field.type in as_text else array
                    for field, array in zip(schema, batch.columns, strict=True)
                ]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
                is_empty = False
            if is_empty:
                yield pa.RecordBatch.from_pylist([], schema)


def _type_of(column: dict[str, Any]) -> pa.DataType:
    """Returns the type that the column has in Parquet too, unless the dataset's options say otherwise."""
    name = column.get("base", column["type"])
    if match := re.fullmatch(r"numeric\((\d+),(-?\d+)\)", name):
        precision, scale = int(match[1]), int(match[2])
        if precision <= _MAX_DECIMAL_DIGITS and 0 <= scale <= precision:
            return pa.decimal128(precision, scale)
    # The precision of times, as in `timestamp(3) without time zone`, changes nothing.
    return _TYPES.get(re.sub(r"\(\d+\)", "", name), pa.string())


def _bytes(array: pa.Array) -> pa.Array:
    values = [None if text is None else bytes.fromhex(text[2:]) for text in array.to_pylist()]
    return pa.array(values, pa.binary())


def _uuids(array: pa.Array) -> pa.Array:
    values = [None if text is None else uuid.UUID(text).bytes for text in array.to_pylist()]
    return pa.ExtensionArray.from_storage(pa.uuid(), pa.array(values, pa.binary(16)))


def _without_json(batch: pa.RecordBatch) -> pa.RecordBatch:
    """JSON is text, as in CSV."""
    for at, field in enumerate(batch.schema):
        if getattr(field.type, "extension_name", None) == "arrow.json":
            batch = batch.set_column(at, field.name, batch.column(at).storage.cast(pa.string()))
    return batch
