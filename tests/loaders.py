"""The ways of docs/guides/loading.md, as the tests of the guides go them: its script with each of the loaders, and `cdc-export apply`.

`cdc-export` and a `python` with the loaders' packages have to be in PATH.
"""

import os
import re
import subprocess
from pathlib import Path

import duckdb
import psycopg
from pyarrow.parquet import ParquetFile

GUIDES = Path(__file__).resolve().parent.parent / "docs/guides"
TARGETS = ("postgres", "duckdb", "pandas")
FORMATS = {"postgres": "csv", "duckdb": "parquet", "pandas": "parquet"}
(SCRIPT,) = re.findall(r"^```sh\n(#!/bin/sh\n.*?)^```$", (GUIDES / "loading.md").read_text(), flags=re.M | re.S)


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
        script = SCRIPT
        for was, now in {
            "http://localhost:8080": server,
            "--consumer duckdb": f"--consumer {which}",
            "--dataset users": f"--dataset {self.dataset}",
            "dataset=users": f"dataset={self.dataset}",
            "inbox": f"{self.name}.{which}",
            "load_duckdb.py": GUIDES / f"load_{which}.py",
            f"{self.name}.{which} shop.duckdb users": " ".join(self.load(which)),
        }.items():
            assert was in script, was
            script = script.replace(was, str(now))
        return ["sh", "-c", script]

    def load(self, which):
        """The arguments of a loader."""
        target = [f"{self.name}.parquet"] if which == "pandas" else [f"{self.name}.db", self.dataset]
        return [f"{self.name}.{which}", *target]

    def start(self, which, server=None):
        # In a process group of its own, so that all of it can be killed.
        return subprocess.Popen(
            self.command(which, server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def update(self, which, server=None):
        """Brings a target up to date. Returns the types of the exports that were loaded, and how many rows they had."""
        return finish(self.start(which, server))[0]

    def rows(self, which, columns, order):
        """Returns a target's rows of these columns, as SQL names them. In pandas, times are in microseconds."""
        sql = f"select {columns} from {self.dataset} order by {order}"
        match which:
            case "postgres":
                with psycopg.connect(f"dbname={self.name}") as target:
                    return target.execute(sql).fetchall()
            case "duckdb":
                with duckdb.connect(f"{self.name}.db", read_only=True) as target:
                    return target.execute(sql).fetchall()
            case "pandas":
                names, order = ([name.strip('"') for name in text.split(", ")] for text in (columns, order))
                frame = ParquetFile(f"{self.name}.parquet").read().to_pandas().sort_values(order)
                for name in frame.select_dtypes("datetimetz"):
                    frame[name] = frame[name].astype("datetime64[us, UTC]").astype("int64")
                return list(frame[names].itertuples(index=False, name=None))


def finish(process):
    printed, said = process.communicate()
    assert process.returncode == 0, f"{process.args}: {process.returncode}: {printed}{said}"
    return loaded(printed + said), said


def loaded(text):
    """Returns type and row count of each export in the output of a loader or of `apply`."""
    return [(kind, int(rows)) for kind, rows in re.findall(r"^(?:[\w-]+: )?(full|delta|incremental) \d+(?::|  *)\s*(\d+) rows", text, flags=re.M)]


def types(loads):
    return [kind for kind, _ in loads]
