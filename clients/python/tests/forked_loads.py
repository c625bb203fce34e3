"""Loads in processes of their own that are killed before a line. Reads commands, and answers each with a line.

`lines`: the lines that a load comes to. `kill LINE`: the exit code of a load that is killed before it. `load`: that of
one that is not killed.

    python forked_loads.py URL CONSUMER FILE DATASET…
"""

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Any

import cdc_export
from cdc_export.duckdb import load_duckdb

PACKAGE = os.path.dirname(cdc_export.__file__)
URL, CONSUMER, PATH, *DATASETS = sys.argv[1:]


def load(killed_at: str | None, seen: list[str]) -> None:
    def trace(frame: FrameType, event: str, _: object) -> Any:
        folder, name = os.path.split(frame.f_code.co_filename)
        # What neither asks nor loads may run in a thread that isn't traced.
        if folder != PACKAGE or name not in ("lanes.py", "duckdb.py"):
            return None
        line = f"{name}:{frame.f_lineno}"
        if event == "line" and line == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "line":
            seen.append(line)
        return trace

    with cdc_export.Client(URL) as client:
        sys.settrace(trace)
        load_duckdb(client, CONSUMER, PATH, DATASETS)
        sys.settrace(None)


def forked(killed_at: str | None) -> str:
    """Returns the lines of a load if it ends well, else its exit code."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        with os.fdopen(reading) as lines:
            text = lines.read()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        return text if not code else str(code)
    try:
        seen: list[str] = []
        load(killed_at, seen)
        os.write(writing, " ".join(dict.fromkeys(seen)).encode())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


for command in sys.stdin:
    name, *rest = command.split()
    answer = forked(rest[0] if rest else None)
    print(answer if name == "lines" or answer.lstrip("-").isdigit() else 0, flush=True)
