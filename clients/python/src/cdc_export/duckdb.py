"""Keeps tables of a DuckDB file equal to the source."""

import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import duckdb
import pyarrow as pa

from cdc_export.client import Client, Error, logger
from cdc_export.export import Export, Position
from cdc_export.lanes import jobs

_TEXTS = ("schema_name", "table_name", "consumer", "dataset", "job", "digest", "source")


def load_duckdb(
    client: Client,
    consumer: str,
    path: str | os.PathLike[str],
    datasets: Sequence[str] | Literal["*"] = "*",
    exclude: Collection[str] = (),
    schema: str | None = None,
    format: str = "parquet",
) -> None:
    """Brings the tables of a DuckDB file to where the datasets are, and makes them where they are missing. All exports
    of a job are loaded in one transaction, with their positions: each exactly once, whatever is killed. A table has the
    name of its dataset, in `schema` or `main`. Logs a line for each export. Raises an `Error` with the code `locked` if
    another process has the file open."""
    with _connect(path) as connection:
        target = _Target(connection, consumer, schema or "main")
        target.acknowledge(client)
        names, stale = _ready(client, datasets, exclude, target.positions)
        for exports in jobs(client, consumer, names, target.positions, format):
            target.load(exports)
            target.acknowledge(client)
        if stale:
            why = f"{len(stale)} of {len(names) + len(stale)} datasets are not ready: {', '.join(stale)}"
            raise Error("failed", why)


def _connect(path: str | os.PathLike[str]) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(os.fspath(path))
    except duckdb.IOException as error:
        if "lock" not in str(error):
            raise Error("unusable", str(error)) from None
        why = f"another process has {os.fspath(path)} open, and DuckDB lets only one write"
        raise Error("locked", f"{why}: wait until it ends ({error})") from None


def _ready(
    client: Client, datasets: Sequence[str] | Literal["*"], exclude: Collection[str], loaded: Collection[str]
) -> tuple[list[str], list[str]]:
    """Returns the datasets to load, and those that are not ready although they are named or have a copy."""
    found = {item["name"]: item for item in client.datasets()}
    wanted = [name for name in (found if datasets == "*" else datasets) if name not in exclude]
    for name in [*wanted, *exclude]:
        if name not in found:
            raise Error("no_dataset", f"the service has no dataset {name}; it has {', '.join(sorted(found))}")
    ready = [name for name in wanted if found[name]["ready"]]
    # The rows of a partition are in the dataset of its table.
    others = [name for name in wanted if not found[name]["ready"] and found[name]["reason"] != "partition"]
    for name in others:
        logger.warning("%s is left out, because it is not ready: %s", name, "; ".join(found[name]["problems"]))
    for name in sorted(set(loaded) - set(found)):
        logger.warning("%s is no dataset any more, and its copy stays as it is", name)
    stale = [name for name in others if name in loaded or datasets != "*"]
    if not ready and not stale:
        raise Error("no_dataset", "no dataset is ready: nothing was loaded")
    return ready, stale


class _Target:
    """The tables of one consumer in a schema. Their rows are in no order: DuckDB loads them faster so."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, consumer: str, schema: str):
        self._connection, self._consumer, self._schema = connection, consumer, schema
        # The name of a schema alone is ambiguous if the file has the same name.
        (self._catalog,) = self._rows("select current_database()")[0]
        self._positions = self._name("cdc_export", "positions")
        self._rows("set session preserve_insertion_order = false")
        for name in ("cdc_export", schema):
            self._rows(f"create schema if not exists {self._name(name)}")
        columns = ", ".join(f"{name} varchar" for name in _TEXTS)
        self._rows(f"create table if not exists {self._positions} ({columns}, acknowledged boolean)")
        there = "select table_name from information_schema.tables where table_catalog = ? and table_schema = ?"
        self._tables = {name for (name,) in self._rows(there, self._catalog, schema)}
        own = f"select dataset, job, digest, source from {self._positions} where schema_name = ? and consumer = ?"
        # A table that was dropped is made again.
        rows = [row for row in self._rows(own, schema, consumer) if row[0] in self._tables]
        self.positions = {dataset: Position(*position) for dataset, *position in rows}

    def load(self, exports: Sequence[Export]) -> None:
        """Loads exports together with their positions, in one transaction."""
        lines = []
        self._connection.begin()
        try:
            for export in exports:
                written, deleted = self._replace(export) if export.replaces else self._merge(export)
                what = f"{export.dataset}: {export.type} {export.number}"
                lines.append(f"{what}  {written} rows written, {deleted} deleted")
                self._remember(export)
            self._connection.commit()
            self.positions.update({export.dataset: export.position for export in exports})
            self._tables.update(self.positions)
        except duckdb.Error as error:
            raise Error("not_loaded", f"{', '.join(export.dataset for export in exports)}: {error}") from error
        for line in lines:
            logger.info(line)

    def acknowledge(self, client: Client) -> None:
        """Tells the service what is committed. A process that was killed before leaves this to the next one."""
        where = "where schema_name = ? and consumer = ? and not acknowledged"
        lane = (self._schema, self._consumer)
        for dataset, job in self._rows(f"select dataset, job from {self._positions} {where}", *lane):
            client.ack(job, dataset)
        self._rows(f"update {self._positions} set acknowledged = true {where}", *lane)

    def _replace(self, export: Export) -> tuple[int, int]:
        """Makes the table anew, so that it also gets new columns and types."""
        table, is_there = self._name(self._schema, export.dataset), export.dataset in self._tables
        if is_there and export.dataset not in self.positions:
            why = f"{self._schema}.{export.dataset} is there, and no load for {self._consumer} has made it"
            raise Error("table_taken", f"{why}: rename it, or load into another schema or file")
        before = self._count(f"select count(*) from {table}") if is_there else 0
        live = f"where {self._register(export)} <> 'DELETE'"
        self._rows(f"create or replace table {table} as select {_names(export.columns)} from temp.cdc_rows {live}")
        return self._count(f"select count(*) from {table}"), before

    def _merge(self, export: Export) -> tuple[int, int]:
        """Deletes all keys of the export, and inserts each row that isn't a `DELETE`."""
        table, columns = self._name(self._schema, export.dataset), _names(export.columns)
        live = f"where {self._register(export)} <> 'DELETE'"
        self._rows("create or replace temp table cdc_stage as from temp.cdc_rows")
        key = " and ".join(f"old.{column} = new.{column}" for column in map(_quote, export.key))
        deleted = self._count(f"delete from {table} as old using temp.cdc_stage as new where {key}")
        written = self._count(f"insert into {table} ({columns}) select {columns} from temp.cdc_stage {live}")
        self._rows("drop table temp.cdc_stage")
        return written, deleted

    def _register(self, export: Export) -> str:
        """Makes the rows of an export the relation `temp.cdc_rows`. Returns the column that has the operations."""
        names = [column.lower() for column in export.columns]
        operation_name = "cdc_operation"
        while operation_name in names:
            operation_name += "_"

        def with_operations() -> Iterator[pa.RecordBatch]:
            for operations, rows in export.batches():
                schema = pa.schema([pa.field(operation_name, pa.string()), *rows.schema])
                yield pa.RecordBatch.from_arrays([operations, *rows.columns], schema=schema)

        batches = with_operations()
        self._connection.register("cdc_rows", pa.RecordBatchReader.from_batches(next(batches).schema, batches))
        return operation_name

    def _remember(self, export: Export) -> None:
        table = (self._schema, export.dataset)
        self._rows(f"delete from {self._positions} where schema_name = ? and table_name = ?", *table)
        # The table doesn't go by the order: a full export replaces it.
        row = (*table, self._consumer, export.dataset, *export.position[:3])
        self._rows(f"insert into {self._positions} values (?, ?, ?, ?, ?, ?, ?, false)", *row)

    def _rows(self, statement: str, *parameters: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, parameters).fetchall()

    def _count(self, statement: str) -> int:
        return int(self._rows(statement)[0][0])

    def _name(self, *parts: str) -> str:
        return ".".join(map(_quote, (self._catalog, *parts)))


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _names(columns: Sequence[str]) -> str:
    return ", ".join(map(_quote, columns))
