"""Which exports come, and the rows that they have."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import Service
from proxy import proxy

from cdc_export import Client, Error, Position, changes
from cdc_export.client import Job, Manifest, _digest

TYPES = {
    "int2": ["-32768", "32767"],
    "int4": ["-2147483648"],
    "int8": ["9223372036854775807"],
    "float4": ["3.4028235e38", "NaN", "-Infinity", "0.1", "-0"],
    "float8": ["5e-324", "1.7976931348623157e308", "NaN", "Infinity", "0.1"],
    "numeric": ["12345678901234567890.12345678900", "1e-40"],
    "numeric(18,2)": ["1234567890123456.78", "-0.01"],
    "numeric(38,0)": ["9" * 38],
    "boolean": ["true", "false"],
    "text": ["", " ", 'a,"b"', "line\nfeed\r\n", "NULL", "\\N", "\\.", "Zoë 👩‍🚀 \u2028", "\ufeffx"],
    "varchar(9)": ["", "nine"],
    "char(3)": ["a"],
    "uuid": ["0b7c5f0c-7a91-4e24-9d1f-000000000001"],
    "bytea": ["\\x", "\\x00ff0a2c22"],
    "json": ['{"a": 1,\n "a": [null, "\\u0000"]}', "null"],
    "jsonb": ['{"b": 1e400}'],
    "timestamptz": ["0001-01-01 00:00:00+00", "2026-02-26 04:30:00.123456+00", "9999-12-31 23:59:59.999999+00"],
    "timestamp(3)": ["2026-02-26 04:30:00.123"],
    "date": ["0001-01-01", "2026-02-28", "9999-12-31"],
    "time": ["00:00:00", "23:59:59.999999"],
    "interval": ["1 day 02:03:04"],
    "integer[]": ["{1,NULL,2}", "{}"],
    "int4range": ["[1,5)"],
    "inet": ["10.0.0.1/8"],
    "shop.amount": ["12.50"],
    "shop.mood": ["so, so"],
}


@pytest.fixture(scope="module")
def all_types(service: Service) -> str:
    service.sql("create domain shop.amount as numeric(9,2)", "create type shop.mood as enum ('so, so', 'good')")
    columns = ", ".join(f"c{at} {kind}" for at, kind in enumerate(TYPES))
    (name,) = service.tables(all_types=columns)
    with service.database() as connection:
        connection.execute("insert into shop.all_types (id) values (0)")
        for at, (kind, values) in enumerate(TYPES.items()):
            for n, value in enumerate(values):
                insert = f"insert into shop.all_types (id, c{at}) values ({at * 100 + n + 1}, %s::text::{kind})"
                connection.execute(insert.encode(), [value])
    return name


def copied(service: Service, query: str) -> bytes:
    with service.database() as connection, connection.cursor().copy(f"copy ({query}) to stdout".encode()) as copy:
        return b"".join(bytes(block) for block in copy)


@pytest.mark.parametrize("options", ["parquet", "csv", "csv gzip", "csv zstd"])
def test_rows_of_all_types_are_what_copy_gives(service: Service, client: Client, all_types: str, options: str) -> None:
    consumer = options.replace(" ", "-")
    form, *compression = options.split()
    if compression:
        client.wait(client.export(consumer, "full", [all_types], format=form, compression=compression[0]))
    exports = changes(client, consumer, all_types, format=form)
    export = next(exports)
    assert export.manifest["export"]["compression"] == (compression or [{"parquet": "zstd"}.get(form, "none")])[0]
    rows, keys = export.read()
    assert keys.column_names == ["id"] and rows.schema.field("c9").type == pa.string()
    assert rows.schema.field("c6").type == pa.decimal128(18, 2) and rows.schema.field("c12").type == pa.uuid()
    assert rows.schema.field("c16").type == pa.timestamp("us", "UTC")
    with service.database() as connection:
        connection.execute("create temp table restored (like shop.all_types)")
        values = ", ".join(f"%s::{kind}" for kind in ["bigint", *TYPES])
        insert = f"insert into restored values ({values})".encode()
        connection.cursor().executemany(insert, [list(row.values()) for row in rows.to_pylist()])
        with connection.cursor().copy(b"copy (select * from restored order by id) to stdout") as copy:
            restored = b"".join(bytes(block) for block in copy)
    assert restored == copied(service, "select * from shop.all_types order by id")


def test_a_value_that_arrow_lacks_is_an_error(service: Service, client: Client) -> None:
    service.tables(forever="v date")
    service.sql("insert into shop.forever values (1, 'infinity')")
    with pytest.raises(Error, match=r"not_in_format.*infinity"):
        for export in changes(client, "forever", "forever", format="csv"):
            export.read()


def without_first_item(path: str, content: bytes) -> bytes:
    if "after=" not in path:
        return content
    answer = json.loads(content)
    return json.dumps({**answer, "items": answer["items"][1:]}).encode()


def operations(export: Any) -> dict[int, str]:
    return {
        row["id"]: operation
        for names, rows in export.batches()
        for operation, row in zip(names.to_pylist(), rows.to_pylist(), strict=True)
    }


def test_operations_are_apart_and_a_position_goes_on(service: Service, client: Client) -> None:
    service.tables(3, steps="v text")
    (first,) = changes(client, "stepper", "steps")
    assert first.replaces and first.type == "delta" and first.columns == ["id", "v"]
    # What a loader stores.
    stored = json.loads(json.dumps(first.position))
    service.sql("delete from shop.steps where id = 1", "update shop.steps set v = 'new' where id = 2")
    service.sql("insert into shop.steps values (4, 'four')")
    found = changes(client, "stepper", "steps", stored)
    second = next(found)
    assert operations(second) == {1: "DELETE", 2: "UPDATE", 4: "INSERT"} and not second.replaces
    rows, keys = second.read()
    assert sorted(rows["id"].to_pylist()) == [2, 4] and sorted(keys["id"].to_pylist()) == [1, 2, 4]
    assert list(found) == [] and not any(file.exists() for file in second.files)
    # An export that nobody loaded comes again.
    assert [export.number for export in changes(client, "stepper", "steps", stored)] == [2]


@pytest.mark.slow
def test_only_a_full_export_goes_on(service: Service, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    service.tables(3, broken="v text")
    position: Position | None = None

    def load(*types: str, why: str = "") -> None:
        nonlocal position
        caplog.clear()
        exports = list(changes(client, "breaker", "broken", position))
        assert [export.type for export in exports] == list(types)
        assert why in caplog.text and bool(why) == bool(caplog.text)
        position = exports[-1].position

    def by_hand(**options: str) -> str:
        service.sql("update shop.broken set v = v || '.' where id = 1")
        job = client.wait(client.export("breaker", "delta", ["broken"], **options))["jobId"]
        return str(job)

    load("delta")
    service.sql("truncate shop.broken", "insert into shop.broken values (1, 'one')")
    # The job itself heals.
    load("full", why="truncated")
    by_hand(format="ndjson")
    load("full", why="is in ndjson")
    by_hand(format="csv")
    load("delta")
    # A file that was removed.
    client._call("DELETE", f"/exports/{by_hand()}")
    load("full", why="the files of the export")
    # An export that the list lacks, and one that the service has forgotten.
    by_hand()
    by_hand()
    with proxy(service.url) as (url, faults), Client(url) as gapped:
        faults.edit = without_first_item
        (client, whole) = (gapped, client)
        load("full", why="does not go on from")
    client = whole
    by_hand()
    service.sql("delete from cdc_export.exports where consumer_id = 'breaker'")
    load("full", why="full_export_needed")
    service.sql("alter table shop.broken add column n integer default 7")
    service.sql("update shop.broken set v = 'with n' where id = 1")
    load("full", why="has other columns")
    position = position and Position(position.job, position.digest, "another/1")
    service.sql("update shop.broken set v = 'other' where id = 1")
    with pytest.raises(Error, match="another_source"):
        list(changes(client, "breaker", "broken", position))


def test_order_never_goes_back_for_who_goes_by_it(service: Service, client: Client) -> None:
    service.tables(3, back="v text")
    position: Position | None = None
    for order in ("1", "2", "3"):
        service.sql("update shop.back set v = v || '.'")
        *_, last = changes(client, "backer", "back", position)
        position = last.position
        assert position.order == order
    assert position
    service.forget("backer", 1)

    def fulls() -> list[str]:
        jobs = client._pages({"consumer": "backer", "dataset": "back", "exportType": "full"})
        return [job["jobId"] for job in jobs]

    for _ in range(4):
        with pytest.raises(Error, match=r"older: .* has the order 2, which is not above 3.*\[:3\]"):
            list(changes(client, "backer", "back", json.loads(json.dumps(position))))
        assert len(fulls()) == 1
    (export,) = changes(client, "backer", "back", position[:3])
    assert (export.job, export.replaces, export.position.order) == (*fulls(), True, "2")
    service.sql("update shop.back set v = v || '.'")
    (export,) = changes(client, "backer", "back", export.position)
    assert export.type == "delta" and int(export.position.order) > 2


@pytest.mark.slow
def test_a_newer_full_export_is_loaded_alone(service: Service, client: Client) -> None:
    service.tables(3, skipped="v text")
    (first,) = changes(client, "skipper", "skipped")
    for kind in ("delta", "full", "delta"):
        service.sql("update shop.skipped set v = v || '.'")
        client.wait(client.export("skipper", kind, ["skipped"]))
    found = [(export.type, export.number) for export in changes(client, "skipper", "skipped", first.position)]
    assert found == [("full", 3), ("delta", 4)]
    assert [export.number for export in changes(client, "skipper", "skipped")] == [3, 4]


class Hostile(Client):
    """A client of a service that gives the dataset `strays` a name of its own choice."""

    name = "../../strays"

    def __init__(self, url: str):
        super().__init__(url)
        self.folders: list[Path] = []

    def export(self, consumer: str, type: str, datasets: Sequence[str] | str, **options: Any) -> str:
        return super().export(consumer, "full", ["strays"])

    def wait(self, job: str) -> Job:
        ended, digest = super().wait(job), self.manifest(job, self.name)["digest"]
        exports = [{**export, "dataset": self.name, "digest": digest} for export in ended["exports"]]
        return {**ended, "exports": exports}

    def manifest(self, job: str, dataset: str) -> Manifest:
        manifest = super().manifest(job, "strays")
        export = {**manifest["export"], "dataset": self.name}
        return {**manifest, "export": export, "digest": _digest(export)}

    def download(self, job: str, dataset: str, path: str | Path, manifest: Manifest | None = None) -> list[Path]:
        self.folders.append(Path(path).resolve())
        return super().download(job, "strays", path, manifest)


def test_a_service_chooses_neither_the_folder_nor_the_dataset(service: Service) -> None:
    service.tables(3, strays="v text")
    hostile = Hostile(service.url)
    with hostile, pytest.raises(Error, match="changed"):
        next(changes(hostile, "hostile", "strays"))
    assert not hostile.folders
    # The list of the datasets is the service's too.
    hostile = Hostile(service.url)
    with hostile:
        next(changes(hostile, "hostile", hostile.name))
    (folder,) = hostile.folders
    assert Path(tempfile.gettempdir()).resolve() == folder.parent.parent
