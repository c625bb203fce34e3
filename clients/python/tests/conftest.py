"""A real service on a private Postgres, which all tests share. BINARY names another binary than the debug build's."""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_export import Client

CLONE = Path(__file__).resolve().parents[3]
BINARY = os.environ.get("BINARY", str(CLONE / "target/debug/cdc-export"))
PATTERN = '[[tables]]\nmatch = ["shop.*"]\n'
MASKED = """
[[dataset]]
name = "masked"
table = "shop.people"
mask = { email = "hmac", phone = "last 4" }
"""


def wait_for(condition: Any, what: str, seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)
    return found


class Service:
    def __init__(self, folder: Path):
        self.folder = folder
        self.datasets = folder / "datasets.toml"
        self.datasets.write_text(PATTERN)
        self.settings = {name: os.environ.get(name, "/") for name in ("PATH", "HOME")}
        self.settings |= {
            "DATA_DIR": f"{folder}/data",
            "OUTPUT_DIR": f"{folder}/output",
            "DATASETS": str(self.datasets),
        }
        self.settings |= {
            "PORT": "0",
            "SEED_ROWS": "0",
            "LOG_FORMAT": "json",
            "MASK_SECRET": "it masks addresses in tests",
        }
        log = folder / "log"
        with log.open("wb") as out:
            self.process = subprocess.Popen([BINARY], env=self.settings, cwd=folder, stderr=out)

        def address() -> list[str]:
            assert self.process.poll() is None, log.read_text()[-2000:]
            return re.findall('"event":"listening","address":"(.*?)"', log.read_text())

        (self.url,) = wait_for(address, "the start of the service", 120)
        self.socket = (folder / "data/postgres/postmaster.pid").read_text().splitlines()[4]
        self.sql("create schema shop")
        self.sql("create table shop.people (id bigint primary key, email text, phone text, name text)")
        self.track("masked", block=MASKED)

    def database(self) -> psycopg.Connection[Any]:
        return psycopg.connect(host=self.socket, user="postgres", dbname="cdc_export", autocommit=True)

    def sql(self, *statements: str) -> None:
        with self.database() as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.database() as connection:
            connection.execute("set time zone 'UTC'")
            return connection.execute(query.encode()).fetchall()

    def command(self, *arguments: str) -> str:
        done = subprocess.run([BINARY, *arguments], env=self.settings, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tables(self, rows: int = 0, **columns: str) -> list[str]:
        """Makes tables with these columns behind an `id`, and waits until they are datasets. Rows need one text."""
        for name, own in columns.items():
            self.sql(f"create table shop.{name} (id bigint primary key, {own})")
            if rows:
                self.sql(f"insert into shop.{name} select i, 'row ' || i from generate_series(1, {rows}) as i")
        self.track(*columns)
        return list(columns)

    def forget(self, consumer: str, order: int) -> None:
        """Takes a consumer's lanes back to an export, as a restore does that loses the output folder, too."""
        lane = f"consumer_id = '{consumer}'"
        self.sql(
            f"delete from cdc_export.exports where {lane} and lane_sequence > {order}",
            "delete from cdc_export.jobs j where not exists (select from cdc_export.exports e where e.job = j.id)",
            f"update cdc_export.lanes set last_number = {order}, last_sequence = {order} where {lane}",
        )
        for marker in (self.folder / "output").glob(".lane-*"):
            marker.unlink()

    def track(self, *names: str, block: str = "") -> None:
        """Adds a block to the dataset file, and waits until the datasets are ready."""
        self.datasets.write_text(self.datasets.read_text() + block)
        if 'capture = "none"' not in block:
            self.command("track", *names)
        self.process.send_signal(signal.SIGHUP)

        def are_ready() -> bool:
            with Client(self.url) as client:
                return set(names) <= {item["name"] for item in client.datasets() if item["ready"]}

        wait_for(are_ready, f"the datasets {names}")


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with tempfile.TemporaryDirectory() as folder:
        # Postgres may run as another user than this process.
        os.chmod(folder, 0o755)
        running = Service(Path(folder))
        yield running
        running.process.terminate()
        running.process.wait(60)


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, patience=5) as made:
        yield made
