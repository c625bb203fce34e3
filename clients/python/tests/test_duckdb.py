"""Tables of a DuckDB file, compared with the source."""

from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import Service

from cdc_export import Client, Error
from cdc_export.duckdb import load_duckdb

VALUE = "v text"


def copy(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(query).fetchall()


def same(service: Service, path: Path, table: str) -> None:
    made, expected = copy(path, f'from "{table}" order by id'), service.rows(f'select * from shop."{table}" order by id')
    assert made == expected


def test_changes_of_several_tables_arrive(service: Service, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "shop.duckdb"
    tables = [service.table(name, VALUE, 100) for name in ("first", "second")]
    for statement in (
        "update shop.first set v = 'changed' where id < 10; delete from shop.second where id > 90",
        "insert into shop.first values (101, null), (102, ''); update shop.second set id = -id where id = 5",
        "select 1",
        "truncate shop.first; insert into shop.first values (1, 'alone')",
        "alter table shop.second add column n integer default 7",
    ):
        load_duckdb(client, "changing", path, tables)
        for table in tables:
            same(service, path, table)
        service.sql(*statement.split("; "))
    load_duckdb(client, "changing", path, tables)
    same(service, path, "first")
    same(service, path, "second")
    assert copy(path, "select count(*) from cdc_export.positions where acknowledged") == [(2,)]
