"""The blocks of README.md, in their order, against a service."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Service
from test_duckdb import command

from cdc_export import changes

README = Path(__file__).parents[1] / "README.md"
LOADING = README.parents[2] / "docs/guides/loading.md"


@pytest.mark.slow
def test_the_blocks_of_the_readme_run(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLT_DATA_DIR", str(tmp_path))
    service.tables(orders="total numeric(18,2), note text")
    service.sql("insert into shop.orders select i, i / 4.0, 'note' from generate_series(1, 100) i")
    opened, *blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), flags=re.M | re.S)
    # The file is opened by the first block, and made by the second one.
    names: dict[str, Any] = {}
    for block in (blocks[0], opened, *blocks[1:]):
        exec(block.replace("http://localhost:8080", service.url), names)
    expected = service.rows("select id, total, note from shop.orders order by id")
    assert names["table"].sort("id").rows() == expected
    # The loop of pandas with what has changed.
    service.sql("delete from shop.orders where id = 1", "update shop.orders set total = 9 where id = 2")
    names["changes"] = partial(changes, after=names["position"])
    exec(blocks[1][blocks[1].index("for export") :], names)
    frame = names["frame"].reset_index().sort_values("id")
    assert list(frame.itertuples(index=False, name=None)) == service.rows("select * from shop.orders order by id")


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, LOADING])
def test_the_command_of_a_page_runs(service: Service, tmp_path: Path, page: Path) -> None:
    (line,) = re.findall(r"^python -m cdc_export duckdb (.*)$", page.read_text(), flags=re.M)
    path, *options = line.replace("http://localhost:8080", service.url).split()
    process = command(service, tmp_path / path, page.stem.lower(), *options[4:])
    assert process.stdout and "rows written" in process.stdout.readline()
    process.terminate()
    assert process.wait(60) == 0
