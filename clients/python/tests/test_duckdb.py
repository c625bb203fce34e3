"""Tables of a DuckDB file, compared with the source."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import Service

from cdc_export import Client, Error
from cdc_export.duckdb import load_duckdb

SOURCE = Path(__file__).parents[1] / "src"


def copy(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(query).fetchall()


def same(service: Service, path: Path, *tables: str) -> None:
    for table in tables:
        made = copy(path, f'from "{table}" order by id')
        assert made == service.rows(f'select * from shop."{table}" order by id'), table


def command(service: Service, path: Path, consumer: str, *options: str, key: str = "") -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-m", "cdc_export", "duckdb", path, "--consumer", consumer, "--url", service.url]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "CDC_EXPORT_KEY": key}
    pipe = subprocess.PIPE
    return subprocess.Popen([*arguments, *options], env=environment, stdout=pipe, stderr=pipe, text=True)


def test_changes_of_several_tables_arrive(service: Service, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "shop.duckdb"
    tables = service.tables(100, first="v text", second="v text")
    for statements in (
        "update shop.first set v = 'changed' where id < 10; delete from shop.second where id > 90",
        "insert into shop.first values (101, null), (102, ''); update shop.second set id = -id where id = 5",
        "select 1",
        "truncate shop.first; insert into shop.first values (1, 'alone')",
        "alter table shop.second add column cdc_operation integer default 7; delete from shop.second where id = 7",
        "update shop.second set cdc_operation = 8 where id = 8",
    ):
        load_duckdb(client, "changing", path, tables)
        same(service, path, *tables)
        service.sql(*statements.split("; "))
    load_duckdb(client, "changing", path, tables)
    same(service, path, *tables)
    assert copy(path, "select count(*) from cdc_export.positions where acknowledged") == [(2,)]
    consumers = client._call("GET", "/consumers", params={"consumer": "changing"}).json()["items"]
    assert [consumer["unacknowledged"] for consumer in consumers] == [0, 0]


def test_tables_are_exact_where_the_source_and_the_order_go_back(
    service: Service, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "shop.duckdb"
    tables = service.tables(10, restored="v text")
    for row in (101, 102, 103):
        service.sql(f"insert into shop.restored values ({row}, 'forgotten')")
        load_duckdb(client, "restoring", path, tables)
    service.forget("restoring", 1)
    service.sql("delete from shop.restored where id > 101", "update shop.restored set v = 'restored' where id = 1")
    load_duckdb(client, "restoring", path, tables)
    same(service, path, *tables)
    service.sql("update shop.restored set v = 'afterwards' where id = 2")
    load_duckdb(client, "restoring", path, tables)
    same(service, path, *tables)


@pytest.mark.slow
def test_several_exports_of_jobs_that_nobody_loaded(service: Service, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "missed.duckdb"
    tables = service.tables(20, left_table="v text", right_table="v text")
    load_duckdb(client, "misser", path, tables, format="csv")
    for turn, datasets in enumerate([tables, ["right_table"], tables]):
        for table in tables:
            service.sql(f"delete from shop.{table} where id = {turn}", f"update shop.{table} set v = '{turn}'")
        client.wait(client.export("misser", "delta", datasets))
    # One that is open: the table is locked until it has been asked for.
    with service.database() as holding, holding.transaction():
        holding.execute(b"lock table shop.left_table in access exclusive mode")
        client.export("misser", "delta", ["left_table"])
        process = command(service, path, "misser", *[part for table in tables for part in ("--dataset", table)])
    printed, warned = process.communicate(timeout=60)
    assert process.returncode == 0, warned
    same(service, path, *tables)
    # The job of both tables is loaded at once, and the one in between by itself. The open one is empty.
    numbers = [line.split("_table: delta ")[0][0] + line.split()[2] for line in printed.splitlines()]
    assert numbers == ["l2", "r2", "r3", "l3", "r4", "l4"]


@pytest.mark.slow
def test_the_command_follows_until_it_is_stopped(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "followed.duckdb"
    service.tables(10, followed="v text")
    once = command(service, path, "follower", "--dataset", "followed", "--schema", "followed")
    printed, warned = once.communicate(timeout=60)
    assert (once.returncode, warned) == (0, ""), warned
    assert printed == "followed: delta 1  10 rows written, 0 deleted\n"
    service.sql("delete from shop.followed where id = 10")
    process = command(service, path, "follower", "--dataset", "followed", "--schema", "followed", "--every", "100ms")
    assert process.stdout and process.stdout.readline() == "followed: delta 2  0 rows written, 1 deleted\n"
    service.sql("update shop.followed set v = 'later'")
    assert process.stdout.readline() == "followed: delta 3  9 rows written, 9 deleted\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert copy(path, "select count(*) from followed.followed.followed where v = 'later'") == [(9,)]
    # A copy of another source is refused, and not each time again.
    with duckdb.connect(str(path)) as connection:
        connection.execute("update cdc_export.positions set source = 'another/1'")
    service.sql("update shop.followed set v = 'of another source'")
    process = command(service, path, "follower", "--dataset", "followed", "--schema", "followed", "--every", "100ms")
    _, warned = process.communicate(timeout=60)
    assert process.returncode == 1 and warned.startswith("error: another_source: "), warned


@pytest.mark.parametrize(
    "options, code, why",
    [
        (["--every", "soon"], 2, "a duration is expected"),
        (["--dataset", "nothing"], 1, "error: no_dataset: the service has no dataset nothing"),
        (["--dataset", "masked", "--exclude", "masked"], 1, "nothing was loaded"),
    ],
)
def test_the_command_says_what_is_wrong(service: Service, tmp_path: Path, options: Any, code: int, why: str) -> None:
    process = command(service, tmp_path / "wrong.duckdb", "wrong", *options)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code and why in said and "Traceback" not in said


def test_a_second_loader_is_refused(service: Service, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "locked.duckdb"
    with duckdb.connect(str(path)):
        process = command(service, path, "second")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and said.startswith("error: locked: another process has")
    assert f"PID {os.getpid()}" in said and "Traceback" not in said


def test_a_table_that_no_load_has_made_stays(service: Service, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "taken.duckdb"
    service.tables(3, taken="v text")
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table taken as select 42 as answer")
    with pytest.raises(Error, match="table_taken"):
        load_duckdb(client, "taker", path, ["taken"])
    assert copy(path, "from taken") == [(42,)]
    load_duckdb(client, "taker", path, ["taken"], schema="mine")
    with pytest.raises(Error, match="table_taken"):
        load_duckdb(client, "another-taker", path, ["taken"], schema="mine")
    # A table that was dropped is made again.
    with duckdb.connect(str(path)) as connection:
        connection.execute("drop table mine.taken")
    load_duckdb(client, "taker", path, ["taken"], schema="mine")
    assert copy(path, "select count(*) from mine.taken") == [(3,)]


@pytest.mark.slow
def test_a_table_that_fails_stops_no_other(service: Service, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "failing.duckdb"
    tables = service.tables(good="v text", bad="v timestamptz default 'infinity'")
    service.sql("insert into shop.good values (1, 'one')", "insert into shop.bad values (1)")
    with pytest.raises(Error, match="1 of 2 datasets failed: bad"):
        load_duckdb(client, "failing", path, tables)
    same(service, path, "good")
    service.sql("update shop.bad set v = '2026-01-01'")
    load_duckdb(client, "failing", path, tables)
    same(service, path, *tables)
    # A dataset that is not ready any more, and has a copy.
    service.sql("alter table shop.bad rename to worse", "update shop.good set v = 'on'")
    with pytest.raises(Error, match="bad"):
        load_duckdb(client, "failing", path, tables)
    same(service, path, "good")


@pytest.mark.slow
def test_a_view_is_replaced(service: Service, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "view.duckdb"
    service.tables(3, base="v text")
    service.sql("create view shop.seen as select id, v from shop.base where id > 1")
    service.track("seen", block='[[dataset]]\nname = "seen"\ntable = "shop.seen"\ncapture = "none"\n')
    for count in (2, 1):
        load_duckdb(client, "viewer", path, ["base", "seen"])
        assert copy(path, "select count(*) from seen") == [(count,)]
        service.sql("delete from shop.base where id = 3")
    assert [item["key"] for item in client.datasets() if item["name"] == "seen"] == [[]]


@pytest.mark.slow
def test_a_partner_sees_its_datasets_with_masks(service: Service, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "partner.duckdb"
    service.tables(3, private="v text")
    service.sql("insert into shop.people values (1, 'ann@example.com', '0123456789', 'Ann')")
    options = "--name partner --consumer partner --dataset masked --scope export:read --scope export:write"
    key = service.command("keys", "create", *options.split()).strip()
    # A job of two datasets, one of which the key may not see.
    client.wait(client.export("partner", "full", ["masked", "private"]))
    loaded = command(service, path, "partner", key=key)
    printed, warned = loaded.communicate(timeout=60)
    assert loaded.returncode == 0, warned
    assert printed.splitlines()[0] == "masked: full 1  1 rows written, 0 deleted"
    ((identity, email, phone, name),) = copy(path, "from masked")
    assert (identity, name) == (1, "Ann") and "ann" not in email and phone.endswith("6789") and "0123" not in phone
    assert copy(path, "select table_name from cdc_export.positions") == [("masked",)]
    service.sql("delete from shop.people")
    # One that another dataset ends: the partner goes on by itself.
    loaded = command(service, path, "partner", key=key)
    assert loaded.wait(60) == 0 and copy(path, "from masked") == []
    with Client(service.url, key) as partner, pytest.raises(Error, match="dataset_not_allowed"):
        partner.export("partner", "full", ["private"])
