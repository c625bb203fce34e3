"""The blocks of README.md, in their order, against a service."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Service
from test_duckdb import command

from cdc_export import Client, changes

README = Path(__file__).parents[1] / "README.md"
LOADING = README.parents[2] / "docs/guides/loading.md"


@pytest.mark.slow
def test_the_blocks_of_the_readme_run(
    service: Service, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLT_DATA_DIR", str(tmp_path))
    service.tables(orders="total numeric(18,2), note text", audit="v text")
    service.sql("insert into shop.orders select i, i / 4.0, 'note' from generate_series(1, 100) i")
    opened, *blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), flags=re.M | re.S)
    # The file is opened by the first block, and made by the second one.
    names: dict[str, Any] = {}
    for block in (blocks[0], opened, *blocks[1:]):
        exec(block.replace("http://localhost:8080", service.url), names)
    # The loops of pandas and Polars, with what has changed.
    service.sql("delete from shop.orders where id = 1", "update shop.orders set total = 9 where id = 2")
    for consumer, block in (("notebook", blocks[1]), ("lab", blocks[2])):
        before = next(client.exports_after(consumer, "orders", None))
        names["changes"] = partial(changes, after=_position(client, before))
        loop = block[block.index("for export") :]
        exec(loop, names)
    expected = service.rows("select id, total, note from shop.orders order by id")
    frame, table = names["frame"].reset_index().sort_values("id"), names["table"].sort("id")
    assert list(frame.itertuples(index=False, name=None)) == expected
    assert table.rows() == expected


def _position(client: Client, export: dict[str, Any]) -> tuple[str, str, str]:
    source = client.manifest(export["jobId"], "orders")["export"]["source"]
    return export["jobId"], export["digest"], f"{source['cluster']}/{source['database']}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, LOADING])
def test_the_command_of_a_page_runs(service: Service, tmp_path: Path, page: Path) -> None:
    (line,) = re.findall(r"^python -m cdc_export duckdb (.*)$", page.read_text(), flags=re.M)
    path, *options = line.replace("http://localhost:8080", service.url).split()
    process = command(service, tmp_path / path, page.stem.lower(), *options[4:])
    assert process.stdout and "rows written" in process.stdout.readline()
    process.terminate()
    assert process.wait(60) == 0
