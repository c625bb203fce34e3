"""Keeps copies of the demo table as docs/guides/loading.md says, and compares them with it. See guides.sh.

    python tests/guides.py SERVER      with libpq's variables for the service's database
"""

import http.client
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import psycopg
from loaders import FORMATS, TARGETS, Copy, finish, types

SERVER = sys.argv[1]
ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ["id", "name", "email", "created_at", "updated_at", "is_deleted"]
FIRST = Copy(SERVER, "users", "first")


def columns(micros):
    """The columns to compare, as SQL: times in microseconds."""
    return ", ".join(micros.format(name) if name.endswith("_at") else name for name in COLUMNS)


POSTGRES = columns("(extract(epoch from {0}) * 1000000)::bigint")


def source():
    with psycopg.connect("") as connection:
        return connection.execute(f"select {POSTGRES} from users where not is_deleted order by id").fetchall()


def rows(copy, which):
    match which:
        case "postgres":
            return copy.rows(which, POSTGRES, "id")
        case "duckdb":
            return copy.rows(which, columns("epoch_us({0})"), "id")


def compare(what, copy, which):
    expected, made = source(), rows(copy, which)
    differing = set(expected) ^ set(made)
    assert not differing and len(made) == len(expected), f"{what}: {which} differs: {sorted(differing)[:3]}"


def check(what, copy=FIRST, server=None):
    """Brings each target up to date and compares it. Returns what each of them loaded."""
    loads = {which: copy.update(which, server) for which in TARGETS}
    for which in TARGETS:
        compare(what, copy, which)
        newest = json.load(call("GET", f"/exports?consumer={which}&dataset=users&status=completed&limit=1"))["items"][0]
        # The package asks for jobs of several datasets.
        (newest,) = newest.get("exports", [newest])
        assert newest["acknowledged"], f"{what}: {which} has not acknowledged {newest}"
    print(f"ok: {what}: {len(source())} users in each")
    return loads


def call(method, path):
    return urllib.request.urlopen(urllib.request.Request(SERVER + path, method=method))


def run(sql):
    with psycopg.connect("", autocommit=True) as source:
        for statement in sql:
            source.execute(statement)


def psql(*arguments):
    subprocess.run(["psql", "-q", "-v", "ON_ERROR_STOP=1", *arguments], check=True)


def export(kind, consumer, format):
    """An export that somebody asks for by hand. Returns its id."""
    command = ["cdc-export", "export", kind, "--consumer", consumer, "--format", format, "--json", "--server", SERVER]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["jobId"]


loads = check("a first load")
assert all(types(load) == ["delta"] for load in loads.values()), loads
loads = check("nothing new")
assert not any(loads.values()), loads

psql("-f", ROOT / "seeds/awkward.sql")
psql("-f", ROOT / "seeds/changes.sql")
run([
    "delete from users where id % 97 = 0",
    "update users set name = upper(name) where id % 89 = 0",
    "update users set is_deleted = not is_deleted, updated_at = now() where id % 83 = 0",
    # A value that must be unique changes its owner.
    "update users set email = 'away' where id = 1; update users set email = 'users@2' where id = 2",
    "update users set email = 'users@2b' where id = 2; update users set email = 'users@2' where id = 1",
])
loads = check("changes")
assert all(types(load) == ["delta"] for load in loads.values()), loads

# A script that died between its export and its load.
for which, format in FORMATS.items():
    export("delta", which, format)
run(["update users set name = 'later', updated_at = now() where id % 79 = 0"])
loads = check("an export that nobody had loaded")
assert all(types(load) == ["delta"] * 2 for load in loads.values()), loads


class Lossy(http.server.BaseHTTPRequestHandler):
    """A proxy that may lose the answer to the next POST: the export is taken on, and the command sends its call again."""

    loses = False

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        service = http.client.HTTPConnection(urllib.parse.urlsplit(SERVER).netloc)
        service.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k.lower() != "host"})
        answer = service.getresponse()
        content = answer.read()
        if Lossy.loses and self.command == "POST" and answer.status == 202:
            Lossy.loses, self.close_connection = False, True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = forward

    def log_message(self, *_):
        pass


lossy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Lossy)
threading.Thread(target=lossy.serve_forever, daemon=True).start()
through = f"http://127.0.0.1:{lossy.server_port}"
run(["update users set name = 'once', updated_at = now() where id % 77 = 0"])
for which in TARGETS:
    Lossy.loses = True
    load = FIRST.update(which, through)
    assert not Lossy.loses and types(load) == ["delta"] and load[0][1], load
check("an answer that was lost")

# A script that is killed while its export runs: the next one waits for it.
run(["update users set name = 'killed', updated_at = now() where id % 61 = 0"])
with psycopg.connect("") as holding:
    holding.execute("lock table users in access exclusive mode")
    for which in TARGETS:
        script = FIRST.start(which)
        asked = "select count(*) from exports where consumer_id = %s and status in ('pending', 'processing')"
        with psycopg.connect("", autocommit=True) as database:
            while not database.execute(asked, [which]).fetchone()[0]:
                assert script.poll() is None, script.communicate()
        os.killpg(script.pid, signal.SIGKILL)
        script.communicate()
loads = check("a script that was killed while its export ran")
assert all(types(load) == ["delta"] for load in loads.values()), loads

# Two runs at the same time, as cron begins them: nothing is loaded twice.
run(["update users set name = 'overlap', updated_at = now() where id % 53 = 0"])
loads = sum((finish(script)[0] for script in [FIRST.start("postgres") for _ in range(2)]), [])
assert sum(rows > 0 for _, rows in loads) == 1, loads
# DuckDB lets one process write, so the second run may end with an error.
outputs = [script.communicate() + (script.returncode,) for script in [FIRST.start("duckdb") for _ in range(2)]]
assert all(code == 0 or "error: locked" in said for _, said, code in outputs), outputs
check("two runs at once")

# Two copies of one consumer, each with a place of its own, at the same time.
SECOND = Copy(SERVER, "users", "second")
check("a second copy of the same consumer", SECOND)
for turn in range(3):
    run([
        f"update users set name = 'two {turn}', updated_at = now() where id % 59 = {turn}",
        f"delete from users where id % 101 = {turn}",
    ])
    for script in [copy.start(which) for which in TARGETS for copy in (FIRST, SECOND)]:
        finish(script)
check("two copies at once")
check("two copies at once, the second", SECOND)
check("and the first again")

# Deltas that somebody asked for by hand, in another format than the loader reads: what is in them is in no other.
run(["update users set name = 'by hand', updated_at = now() where id % 71 = 0"])
for which in TARGETS:
    export("delta", which, "ndjson")
loads = check("an export by another hand")
assert all(types(load) == ["full"] for load in loads.values()), loads

# A loader that was away for longer than its exports are kept.
run(["update users set name = 'pruned', updated_at = now() where id % 73 = 0"])
for which, format in FORMATS.items():
    export("delta", which, format)
run([f"delete from cdc_export.exports where consumer_id in {TARGETS}"])
loads = check("exports that are not kept any more")
assert all(types(load) == ["full"] for load in loads.values()), loads

run(["truncate users", "insert into users (name, email, created_at, updated_at) "
     "select 'n' || i, 'e' || i, now(), now() from generate_series(1, 500) as i"])
loads = check("a TRUNCATE")
assert all(types(load) == ["full"] for load in loads.values()), loads

# One call of README's, an incremental by hand: it has no deletions, and no `operation`. The delta behind it has them.
run(["update users set name = 'by hand', updated_at = now() where id % 7 = 0", "delete from users where id % 7 = 1"])
for which, format in FORMATS.items():
    export("incremental", which, format)
run(["update users set name = 'after that', updated_at = now() where id % 7 = 2"])
loads = check("an incremental by hand")
assert all(types(load) == ["incremental", "delta"] for load in loads.values()), loads

# An export that nobody has loaded, and whose file is gone.
run(["update users set name = 'gone', updated_at = now() where id % 7 = 3"])
for which, format in FORMATS.items():
    call("DELETE", f"/exports/{export('delta', which, format)}").close()
run(["update users set name = 'not gone', updated_at = now() where id % 7 = 4"])
loads = check("a file that is gone")
assert all(types(load) == ["full"] for load in loads.values()), loads

# A copy that was lost goes on with a full export.
os.remove("first.db")
run(["update users set name = 'lost', updated_at = now() where id % 7 = 5"])
loads = check("a copy that was lost")
assert types(loads["duckdb"]) == ["full", "delta"], loads
