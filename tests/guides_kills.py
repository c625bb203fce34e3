"""Kills the loaders of docs/guides before each line that they run, and compares what the next run makes of it. See guides.sh.

    python tests/guides_kills.py SERVER      with libpq's variables for the service's database
"""

import collections
import os
import runpy
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import duckdb  # noqa: F401, each process that is forked would import it
import pandas  # noqa: F401
import psycopg
from loaders import GUIDES, Copy

SERVER = sys.argv[1]
COLUMNS = "id, name, email, is_deleted"
FEW = "insert into users (name, email, created_at, updated_at) select 'n', gen_random_uuid(), now(), now() from generate_series(1, {})"
USERS = Copy(SERVER, "users", "kills")
sys.path.insert(0, str(GUIDES))


def run(sql):
    with psycopg.connect("") as connection:
        connection.execute(sql)


def forked(step):
    """The exit code of a process that takes a step, or the signal that killed it as a negative number."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        step()
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    os._exit(1)


def load(which, each_line=None):
    """A loader's run. Calls `each_line` before each of its lines, from where it looks for exports."""
    begun = False

    def trace(frame, event, _):
        nonlocal begun
        folder, file = os.path.split(frame.f_code.co_filename)
        if folder != str(GUIDES):
            return None
        begun = begun or frame.f_code.co_name == "exports"
        if begun and event == "line":
            each_line(f"{file}:{frame.f_lineno}")
        return trace

    sys.argv = [f"load_{which}.py", *USERS.load(which)]
    sys.stdout = sys.stderr = open(os.devnull, "w")
    sys.settrace(each_line and trace)
    runpy.run_path(str(GUIDES / sys.argv[0]), run_name="__main__")


def count(which):
    """Writes down how often the loader comes to each line."""
    lines = collections.Counter()
    load(which, lambda line: lines.update([line]))
    Path("lines").write_text("".join(f"{line} {times}\n" for line, times in lines.items()))


def kill(which, at, times):
    """A run that is killed before a line, when it comes to it for this time."""

    def each_line(line):
        nonlocal times
        times -= line == at
        if line == at and not times:
            os.kill(os.getpid(), signal.SIGKILL)

    load(which, each_line)


def compare(which):
    with psycopg.connect("") as source:
        expected = source.execute(f"select {COLUMNS} from users where not is_deleted order by id").fetchall()
    made = USERS.rows(which, COLUMNS, "id")
    assert made == expected, f"{which} differs: {sorted(set(made) ^ set(expected))[:3]}"
    left = [name for name in os.listdir(f"kills.{which}") if not name.startswith(".")]
    assert not left, left


run("truncate users restart identity")
run(FEW.format(60))
for which in ("duckdb", "pandas"):
    USERS.update(which)
    for kind, change in (
        ("full", "update users set name = 'full' where id % 3 = 0"),
        ("delta", "update users set name = 'one' where id % 3 = 1; delete from users where id = 10"),
        ("delta", "delete from users where id % 5 = 1; update users set name = 'two' where id % 2 = 0"),
    ):
        run(f"{change}; {FEW.format(2)}")
        into = ["--into", f"kills.{which}", "--request", kind, "--server", SERVER]
        subprocess.run(["cdc-export", "pull", "--consumer", which, "--format", "parquet", *into], check=True, capture_output=True)
    before = Path(f"before.{which}").absolute()
    shutil.copytree(f"kills.{which}", before / f"kills.{which}")
    shutil.copy(USERS.load(which)[1], before)

    def part(*steps):
        """Takes steps, each in a process of its own, in a folder that is as before the load. Returns how they ended."""
        shutil.copytree(before, "part")
        os.chdir("part")
        codes = [forked(step) for step in steps]
        lines = Path("lines").read_text().split() if Path("lines").exists() else []
        os.chdir("..")
        shutil.rmtree("part")
        return codes, lines

    codes, lines = part(lambda: count(which), lambda: compare(which))
    lines = dict(zip(lines[::2], map(int, lines[1::2])))
    assert codes == [0, 0] and len(lines) > 25 and 3 in lines.values(), (codes, lines)
    for at, times in lines.items():
        # In the second of the three exports, if the line is run for each.
        codes, _ = part(lambda: kill(which, at, min(times, 2)), lambda: load(which), lambda: compare(which))
        assert codes == [-signal.SIGKILL, 0, 0], f"{which}, killed at {at}: {codes}"
    print(f"ok: load_{which}.py, killed at each of {len(lines)} lines")
