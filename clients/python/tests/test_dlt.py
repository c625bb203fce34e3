"""The source for dlt, into dlt's DuckDB."""

from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import Service

from cdc_export import Client

pytestmark = pytest.mark.slow
dlt = pytest.importorskip("dlt")


def run(client: Client, folder: Path, datasets: list[str], pipelines: str = "pipelines") -> None:
    from cdc_export.dlt import source

    destination = dlt.destinations.duckdb(str(folder / "copy.duckdb"))
    pipeline = dlt.pipeline("shop", str(folder / pipelines), destination=destination, dataset_name="mart")
    pipeline.run(source(client, "merger", datasets)).raise_on_failed_jobs()


def loaded(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(folder / "copy.duckdb")) as connection:
        return connection.execute(query).fetchall()


def test_dlt_merges_deletes_and_replaces(service: Service, client: Client, tmp_path: Path) -> None:
    tables = service.tables(merged="v text, u uuid, n numeric(9,2), t timestamptz", kept="v text")
    columns = "id, v, u, n, t"
    service.sql(
        "insert into shop.merged select i, 'row', gen_random_uuid(), i / 4.0, now() from generate_series(1, 50) i",
        "insert into shop.kept values (1, 'one')",
    )

    def check() -> None:
        made = loaded(tmp_path, f"select {columns.replace('u,', 'u::uuid,')} from mart.merged order by id")
        assert made == service.rows(f"select {columns} from shop.merged order by id")
        assert loaded(tmp_path, "select id, v from mart.kept") == service.rows("select * from shop.kept")

    run(client, tmp_path, tables)
    check()
    service.sql("delete from shop.merged where id < 5", "update shop.merged set v = 'new', id = -id where id = 7")
    run(client, tmp_path, tables)
    check()
    # A full export without rows.
    service.sql("truncate shop.kept")
    run(client, tmp_path, tables)
    check()
    service.sql("insert into shop.kept values (2, 'two')", "delete from shop.merged where id = 9")
    # The state comes from the destination.
    run(client, tmp_path, tables, "other pipelines")
    check()
    numbers = {export["number"] for export in client.exports_after("merger", "merged", None)}
    assert numbers == {1, 2, 3}
    consumers = client._call("GET", "/consumers", params={"consumer": "merger"}).json()["items"]
    assert [consumer["unacknowledged"] for consumer in consumers] == [1, 1]
