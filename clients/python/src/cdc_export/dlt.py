"""A source for dlt, which loads it into any of its destinations."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import dlt
import pyarrow as pa
from dlt.common.schema.typing import TWriteDisposition
from dlt.extract import DltResource
from pyarrow import compute

from cdc_export.client import Client
from cdc_export.export import Export
from cdc_export.lanes import changes

DELETED = "cdc_deleted"
"""The column that tells dlt which rows to delete."""


@dlt.source(name="cdc_export")
def source(
    client: Client,
    consumer: str,
    datasets: Sequence[str] | Literal["*"] = "*",
    exclude: Collection[str] = (),
    format: str = "parquet",
) -> Iterator[DltResource]:
    """Yields a resource for each dataset that is ready. A run loads one export of each: all rows first, then what has
    changed. The position is in the state of the resource, which dlt stores behind the rows."""
    ready = [item["name"] for item in client.datasets() if item["ready"]] if datasets == "*" else datasets
    for dataset in ready:
        if dataset not in exclude:
            yield dlt.resource(_rows, name=dataset)(client, consumer, dataset, format)


def _rows(client: Client, consumer: str, dataset: str, format: str) -> Iterator[Any]:
    state = dlt.current.resource_state()
    position = state.get("position")
    if position:
        client.ack(position[0], dataset)
    for export in changes(client, consumer, dataset, position, format):
        disposition: TWriteDisposition = "replace" if export.replaces else "merge"
        columns: Any = {} if export.replaces else {DELETED: {"hard_delete": True}}
        hints = dlt.mark.make_hints(write_disposition=disposition, primary_key=export.key, columns=columns)
        for operations, rows in export.batches():
            yield dlt.mark.with_hints(_table(export, operations, rows), hints)
        # dlt's tables don't go by the order.
        state["position"] = list(export.position[:3])
        # The next one may need another disposition, and dlt loads a resource with one.
        return


def _table(export: Export, operations: pa.Array, rows: pa.RecordBatch) -> pa.Table:
    """Returns the rows with types that dlt knows. If they replace all, those that were deleted are left out."""
    columns = {DELETED: (deleted := compute.equal(operations, "DELETE"))}
    for field, column in zip(rows.schema, rows.columns, strict=True):
        is_uuid = field.type == pa.uuid()
        texts = [value and str(value) for value in column.to_pylist()] if is_uuid else None
        columns[field.name] = column if texts is None else pa.array(texts, pa.string())
    # dlt expects of a key that it has no nulls.
    fields = [pa.field(name, column.type, nullable=name not in export.key) for name, column in columns.items()]
    table = pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))
    return table.filter(compute.invert(deleted)) if export.replaces else table
