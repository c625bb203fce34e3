"""The ways of docs/guides/loading.md, as the tests of the guides go them: `cdc-export apply`, and `python -m cdc_export duckdb`.

`cdc-export` and a `python` with the packages of the venv `guides` have to be in PATH.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import psycopg

PACKAGE = Path(__file__).resolve().parent.parent / "clients/python/src"
TARGETS = ("postgres", "duckdb")
FORMATS = {"postgres": "csv", "duckdb": "parquet"}


class Copy:
    """A copy of a dataset in each of the targets, under a name of its own. The consumers are the targets' names."""

    def __init__(self, server, dataset, name):
        self.server, self.dataset, self.name = server, dataset, name
        subprocess.run(["createdb", name], check=True)

    def command(self, which, server=None):
        server = server or self.server
        if which == "postgres":
            to = f"postgres://{os.environ['PGUSER']}@{os.environ['PGHOST'].replace('/', '%2F')}/{self.name}"
            options = ["--to", to, "--consumer", which, "--dataset", self.dataset, "--server", server, "--ack"]
            return ["cdc-export", "apply", *options]
        options = ["--consumer", which, "--dataset", self.dataset, "--url", server]
        return [sys.executable, "-m", "cdc_export", "duckdb", f"{self.name}.db", *options]

    def start(self, which, server=None):
        # In a process group of its own, so that all of it can be killed.
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
        outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.command(which, server), env=environment, start_new_session=True, **outputs)

    def update(self, which, server=None):
        """Brings a target up to date. Returns the types of the exports that were loaded, and how many rows they had."""
        return finish(self.start(which, server))[0]

    def rows(self, which, columns, order):
        """Returns a target's rows of these columns, as SQL names them."""
        sql = f"select {columns} from {self.dataset} order by {order}"
        if which == "postgres":
            with psycopg.connect(f"dbname={self.name}") as target:
                return target.execute(sql).fetchall()
        with duckdb.connect(f"{self.name}.db", read_only=True) as target:
            return target.execute(sql).fetchall()


def finish(process):
    printed, said = process.communicate()
    assert process.returncode == 0, f"{process.args}: {process.returncode}: {printed}{said}"
    return loaded(printed + said), said


def loaded(text):
    """Returns type and row count of each export in the output of a loader or of `apply`."""
    return [(kind, int(rows)) for kind, rows in re.findall(r"^(?:[\w-]+: )?(full|delta|incremental) \d+(?::|  *)\s*(\d+) rows", text, flags=re.M)]


def types(loads):
    return [kind for kind, _ in loads]
