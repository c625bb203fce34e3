"""Keeps tables of a DuckDB file equal to the source."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import duckdb
import pyarrow as pa

from cdc_export.changes import jobs
from cdc_export.client import Client, Error, logger
from cdc_export.export import Export, Position

# Rows of this table and of the copies are committed together.
_POSITIONS = """
    create table if not exists {} (
        schema_name varchar, table_name varchar, consumer varchar, dataset varchar,
        job varchar, digest varchar, source varchar, acknowledged boolean
    )
"""


def load_duckdb(
    client: Client,
    consumer: str,
    path: str | os.PathLike[str],
    datasets: Sequence[str] | Literal["*"] = "*",
    exclude: Collection[str] = (),
    schema: str | None = None,
    format: str = "parquet",
) -> None:
    """Brings the tables of a DuckDB file to where the datasets are, and makes them where they are missing. All exports of
    a job are loaded in one transaction, with their positions: each exactly once, whatever is killed. A table has the name
    of its dataset, in `schema` or `main`. Logs a line for each export. Raises an `Error` with the code `locked` if
    another process has the file open."""
    with _connect(path) as connection:
        target = _Target(connection, consumer, schema or "main")
        positions = target.positions()
        target.acknowledge(client)
        names, stale = _ready(client, datasets, exclude, positions)
        for dataset, why in stale.items():
            logger.warning("%s is not ready, and its copy gets older: %s", dataset, why)
        for exports in jobs(client, consumer, names, positions, format):
            target.load(exports)
            target.acknowledge(client)
        if stale:
            raise Error(
                "failed", f"{len(stale)} of {len(names) + len(stale)} datasets are not ready: {', '.join(stale)}"
            )


def _connect(path: str | os.PathLike[str]) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(os.fspath(path))
    except duckdb.IOException as error:
        if "lock" not in str(error):
            raise Error("unusable", str(error)) from None
        why = f"another process has {os.fspath(path)} open, and DuckDB lets only one write"
        raise Error("locked", f"{why}: wait until it ends ({error})") from None


def _ready(
    client: Client,
    datasets: Sequence[str] | Literal["*"],
    exclude: Collection[str],
    positions: Collection[str],
) -> tuple[list[str], dict[str, str]]:
    """Returns the datasets to load, and those that have a copy and are not ready, with the reason."""
    found = {item["name"]: item for item in client.datasets()}
    takes_all = datasets == "*"
    wanted = [name for name in (found if takes_all else datasets) if name not in exclude]
    for name in [*wanted, *exclude]:
        if name not in found:
            raise Error("no_dataset", f"the service has no dataset {name}; it has {', '.join(sorted(found))}")
    ready, stale = [], {}
    for name in wanted:
        item = found[name]
        why = "; ".join(item["problems"]) or str(item["reason"])
        if item["ready"]:
            ready.append(name)
        elif name in positions or not takes_all:
            stale[name] = why
        # The rows of a partition are in the dataset of its table.
        elif item["reason"] != "partition":
            logger.warning("%s is left out, because it is not ready: %s", name, why)
    if takes_all:
        for name in sorted(set(positions) - set(found)):
            logger.warning("%s is no dataset any more, and its copy stays as it is", name)
    if not ready and not stale:
        raise Error("no_dataset", "no dataset is ready: nothing was loaded")
    return ready, stale


class _Target:
    """The tables of one consumer in a schema."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, consumer: str, schema: str):
        self._connection, self._consumer, self._schema = connection, consumer, schema
        # The name of a schema alone is ambiguous if the file has the same name.
        (self._catalog,) = connection.execute("select current_database()").fetchall()[0]
        self._positions = self._name("cdc_export", "positions")
        for name in ("cdc_export", schema):
            connection.execute(f"create schema if not exists {self._name(name)}")
        connection.execute(_POSITIONS.format(self._positions))

    def positions(self) -> dict[str, Position]:
        """Returns the position of each table that is there."""
        rows = self._connection.execute(
            f"select dataset, job, digest, source from {self._positions} where schema_name = ? and consumer = ?",
            [self._schema, self._consumer],
        ).fetchall()
        return {dataset: Position(*position) for dataset, *position in rows if self._has(dataset)}

    def load(self, exports: Sequence[Export]) -> None:
        """Loads exports together with their positions, in one transaction."""
        lines = []
        self._connection.begin()
        try:
            for export in exports:
                self._check_owner(export)
                written, deleted = self._replace(export) if export.replaces else self._merge(export)
                lines.append(
                    f"{export.dataset}: {export.type} {export.number}  {written} rows written, {deleted} deleted"
                )
                self._remember(export)
            self._connection.commit()
        except duckdb.Error as error:
            raise Error("not_loaded", f"{', '.join(export.dataset for export in exports)}: {error}") from error
        for line in lines:
            logger.info(line)

    def acknowledge(self, client: Client) -> None:
        """Tells the service what is committed. A process that was killed before leaves this to the next one."""
        where = f"{self._positions} where consumer = ? and schema_name = ? and not acknowledged"
        lane = [self._consumer, self._schema]
        for dataset, job in self._connection.execute(f"select dataset, job from {where}", lane).fetchall():
            try:
                client.ack(job, dataset)
            except Error as error:
                # A database that was put back does not know the job.
                if error.code not in ("not_found", "not_completed"):
                    raise
        self._connection.execute(f"update {where.replace(' where', ' set acknowledged = true where')}", lane)

    def _has(self, table: str) -> bool:
        found = "select 1 from information_schema.tables where (table_catalog, table_schema, table_name) = (?, ?, ?)"
        return bool(self._connection.execute(found, [self._catalog, self._schema, table]).fetchall())

    def _check_owner(self, export: Export) -> None:
        of_table = f"select consumer, dataset from {self._positions} where schema_name = ? and table_name = ?"
        owner = self._connection.execute(of_table, [self._schema, export.dataset]).fetchall()
        name = f"{self._schema}.{export.dataset}"
        if owner and owner[0][0] != self._consumer:
            why = f"{name} has the rows of the consumer {owner[0][0]}"
            raise Error(
                "another_lane", f"{why}: load into another schema or file, or drop it and its row of {self._positions}"
            )
        if not owner and self._has(export.dataset):
            raise Error(
                "table_taken", f"{name} is there, and no load has made it: rename it, or load into another schema"
            )

    def _replace(self, export: Export) -> tuple[int, int]:
        """Makes the table anew, so that it also gets new columns and types."""
        table, columns = self._table(export), _quoted(export.columns)
        before = self._count(f"select count(*) from {table}") if self._has(export.dataset) else 0
        live = f"select {columns} from temp.cdc_rows where {self._register(export)} <> 'DELETE'"
        self._connection.execute(f"create or replace table {table} as {live}")
        return self._count(f"select count(*) from {table}"), before

    def _merge(self, export: Export) -> tuple[int, int]:
        """Deletes all keys of the export, and inserts each row that isn't a `DELETE`."""
        table, columns = self._table(export), _quoted(export.columns)
        operation = self._register(export)
        self._connection.execute("create or replace temp table cdc_stage as from temp.cdc_rows")
        key = " and ".join(f"old.{column} = new.{column}" for column in map(_quote, export.key))
        deleted = self._count(f"delete from {table} as old using temp.cdc_stage as new where {key}")
        live = f"select {columns} from temp.cdc_stage where {operation} <> 'DELETE'"
        written = self._count(f"insert into {table} ({columns}) {live}")
        self._connection.execute("drop table temp.cdc_stage")
        return written, deleted

    def _register(self, export: Export) -> str:
        """Makes the rows of an export the relation `temp.cdc_rows`. Returns the column that has the operations."""
        names = [column["name"].lower() for column in export.columns]
        operation_name = "cdc_operation"
        while operation_name in names:
            operation_name += "_"

        def with_operations() -> Iterator[pa.RecordBatch]:
            for operations, rows in export.batches():
                if operations is None:
                    operations = pa.repeat(pa.scalar("INSERT"), rows.num_rows)
                schema = pa.schema([pa.field(operation_name, pa.string()), *rows.schema])
                yield pa.RecordBatch.from_arrays([operations, *rows.columns], schema=schema)

        batches = with_operations()
        first = next(batches)
        reader = pa.RecordBatchReader.from_batches(first.schema, itertools.chain([first], batches))
        self._connection.register("cdc_rows", reader)
        return operation_name

    def _remember(self, export: Export) -> None:
        self._connection.execute(
            f"delete from {self._positions} where schema_name = ? and table_name = ?", [self._schema, export.dataset]
        )
        self._connection.execute(
            f"insert into {self._positions} values (?, ?, ?, ?, ?, ?, ?, false)",
            [self._schema, export.dataset, self._consumer, export.dataset, *export.position],
        )

    def _count(self, statement: str) -> int:
        (count,) = self._connection.execute(statement).fetchall()[0]
        return int(count)

    def _table(self, export: Export) -> str:
        return self._name(self._schema, export.dataset)

    def _name(self, *parts: str) -> str:
        return ".".join(map(_quote, (self._catalog, *parts)))


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted(columns: Sequence[dict[str, Any]]) -> str:
    return ", ".join(_quote(column["name"]) for column in columns)
