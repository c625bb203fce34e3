"""Loads that are killed. The next one makes the copy equal to the source."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import Service
from test_duckdb import SOURCE, command, same

from cdc_export import Client
from cdc_export.duckdb import load_duckdb

pytestmark = pytest.mark.slow


def test_a_load_may_be_killed_before_each_line(service: Service, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "killed.duckdb"
    tables = service.tables(50, killed_a="v text", killed_b="v text")

    def load(line: str = "") -> "subprocess.CompletedProcess[str]":
        arguments = [sys.executable, __file__, service.url, path, line, *tables]
        return subprocess.run(arguments, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(SOURCE)})

    def change(turn: int, is_full: bool) -> None:
        if is_full:
            # A new file: a table without its position would be refused.
            for file in (path, path.with_name(f"{path.name}.wal")):
                file.unlink(missing_ok=True)
            service.sql("truncate shop.killed_a; insert into shop.killed_a select i, '' from generate_series(1, 50) i")
        service.sql(
            f"update shop.killed_a set v = '{turn}' where id % 3 = {turn % 3}",
            f"delete from shop.killed_b where id = {turn}",
            f"insert into shop.killed_b values ({1000 + turn}, 'new') on conflict (id) do update set v = 'newer'",
        )

    ways: dict[str, bool] = {}
    for is_full in (True, False):
        change(0, is_full)
        ways |= {line: is_full for line in load().stdout.split() if line not in ways}
    assert len(ways) > 80, ways
    for turn, (line, is_full) in enumerate(ways.items(), start=1):
        change(turn, is_full)
        assert load(line).returncode == -signal.SIGKILL, line
        # What the killed one has asked for is loaded with what has changed since.
        change(turn, False)
        load_duckdb(client, "killed", path, tables)
        same(service, path, *tables)


def traced_load(url: str, path: str, killed_at: str, *datasets: str) -> None:
    """A load that is killed before a line, or prints the lines that it comes to."""
    lines: dict[str, None] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        folder, name = os.path.split(frame.f_code.co_filename)
        # The other files may run in a thread that isn't traced.
        if os.path.basename(folder) != "cdc_export" or name not in ("lanes.py", "duckdb.py"):
            return None
        if event == "line":
            lines[line := f"{name}:{frame.f_lineno}"] = None
            if line == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    with Client(url) as client:
        sys.settrace(trace)
        load_duckdb(client, "killed", path, datasets)
        sys.settrace(None)
    print(*lines)


def test_a_loader_may_be_killed_at_any_moment(service: Service, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "random.duckdb"
    tables = service.tables(5000, random_a="v text", random_b="v text")
    chance = random.Random(seed := random.randrange(1 << 32))
    print(f"seed {seed}")
    has_ended = threading.Event()

    def write() -> None:
        turn = 0
        while not has_ended.is_set():
            turn += 1
            table = chance.choice(tables)
            service.sql(
                f"update shop.{table} set v = 'turn {turn}' where id % 7 = {turn % 7}",
                f"delete from shop.{table} where id % 5000 = {turn}",
                f"insert into shop.{table} select {turn * 10000} + i, 'new' from generate_series(1, 50) i",
            )

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(20):
        named = [part for table in tables for part in ("--dataset", table)]
        process = command(service, path, "random", *named, "--every", "100ms")
        time.sleep(chance.uniform(0.5, 3))
        process.kill()
        _, said = process.communicate()
        assert "Traceback" not in said and "error" not in said, said
    has_ended.set()
    writer.join()
    load_duckdb(client, "random", path, tables)
    same(service, path, *tables)


if __name__ == "__main__":
    traced_load(*sys.argv[1:])
