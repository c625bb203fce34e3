"""Runs the loaders of docs/guides against a service with the demo table, and compares what they have made. See guides.sh.

    python tests/guides.py SERVER      with libpq's variables for the service's database
"""

import glob
import http.client
import http.server
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import duckdb
import psycopg
from pyarrow.parquet import ParquetFile

SERVER = sys.argv[1]
ROOT = Path(__file__).resolve().parent.parent
GUIDES = ROOT / "docs/guides"
COLUMNS = ["id", "name", "email", "created_at", "updated_at", "is_deleted"]
sys.path.insert(0, str(GUIDES))
from exports import Exports  # noqa: E402

TARGETS = {"postgres": "dbname=target", "duckdb": "target.duckdb", "pandas": "frames"}
CONSUMERS = (("replica", "csv"), ("duckdb", "parquet"), ("pandas", "parquet"))
SECOND = {"postgres": "dbname=second", "duckdb": "second.duckdb", "pandas": "frames2"}


def start(which, targets, server):
    command = [sys.executable, GUIDES / f"load_{which}.py", server, targets[which]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def load(which, targets=TARGETS, server=SERVER):
    loader = start(which, targets, server)
    printed, said = loader.communicate()
    assert loader.returncode == 0, f"{which}: {said}"
    return printed


def columns(micros):
    """The columns to compare, as SQL: times in microseconds."""
    return ", ".join(micros.format(name) if name.endswith("_at") else name for name in COLUMNS)


def of_postgres(conninfo, where):
    names = columns("(extract(epoch from {0}) * 1000000)::bigint")
    with psycopg.connect(conninfo) as connection:
        return connection.execute(f"select {names} from users where {where} order by id").fetchall()


def of_duckdb(file):
    with duckdb.connect(file, read_only=True) as connection:
        return connection.execute(f"select {columns('epoch_us({0})')} from users order by id").fetchall()


def of_pandas(folder):
    (file,) = glob.glob(f"{folder}/users.*.parquet")
    users = ParquetFile(file).read().to_pandas().sort_values("id")
    for column in ("created_at", "updated_at"):
        users[column] = users[column].astype("datetime64[us, UTC]").astype("int64")
    return list(users[COLUMNS].itertuples(index=False, name=None))


def check(what, targets=TARGETS, server=SERVER):
    said = {which: load(which, targets, server) for which in targets}
    source = of_postgres("", "not is_deleted")
    made = {
        "postgres": of_postgres(targets["postgres"], "true"),
        "duckdb": of_duckdb(targets["duckdb"]),
        "pandas": of_pandas(targets["pandas"]),
    }
    for which, rows in made.items():
        differing = set(map(tuple, source)) ^ set(map(tuple, rows))
        assert not differing and len(rows) == len(source), f"{what}: {which} differs: {sorted(differing)[:3]}"
    print(f"ok: {what}: {len(source)} users in each")
    return said


def run(sql):
    with psycopg.connect("", autocommit=True) as source:
        for statement in sql:
            source.execute(statement)


def psql(*arguments):
    subprocess.run(["psql", "-q", "-v", "ON_ERROR_STOP=1", *arguments], check=True)


run(["create database target"])
said = check("a first load")
assert all(text.startswith("full: ") for text in said.values()), said
said = check("nothing new")
assert all(text.startswith("delta: 0 rows") for text in said.values()), said

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
said = check("changes")
assert all(text.startswith("delta: ") for text in said.values()), said

# A loader that died between its export and its load.
for consumer, format in CONSUMERS:
    Exports(SERVER, consumer, format).run("delta")
run(["update users set name = 'later', updated_at = now() where id % 79 = 0"])
said = check("an export that nobody had loaded")
assert all(text.count("delta: ") == 2 for text in said.values()), said


class Lossy(http.server.BaseHTTPRequestHandler):
    """A proxy that may lose the answer to the next POST: the export is taken on, and the loader sends its call again."""

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
    said = load(which, server=through)
    assert not Lossy.loses and said.count("delta: ") == 1 and not said.startswith("delta: 0 "), said
check("an answer that was lost")

# A loader that is killed while its export runs: the next one waits for it.
run(["update users set name = 'killed', updated_at = now() where id % 61 = 0"])
with psycopg.connect("") as holding:
    holding.execute("lock table users in access exclusive mode")
    for which, consumer in (("postgres", "replica"), ("duckdb", "duckdb"), ("pandas", "pandas")):
        loader = start(which, TARGETS, SERVER)
        asked = "select count(*) from exports where consumer_id = %s and status in ('pending', 'processing')"
        with psycopg.connect("", autocommit=True) as source:
            while not source.execute(asked, [consumer]).fetchone()[0]:
                assert loader.poll() is None, loader.communicate()
        loader.kill()
        loader.communicate()
said = check("a loader that was killed while its export ran")
assert all(text.count("delta: ") == 2 for text in said.values()), said

# Two runs of one loader at the same time, as cron begins them: the second one waits, and loads nothing again. DuckDB refuses to open a
# file twice.
run(["update users set name = 'overlap', updated_at = now() where id % 53 = 0"])
for which in ("postgres", "pandas"):
    runs = [(loader, *loader.communicate()) for loader in [start(which, TARGETS, SERVER) for _ in range(2)]]
    assert all(loader.returncode == 0 for loader, _, _ in runs), runs
    loaded = [line for _, printed, _ in runs for line in printed.splitlines() if line.startswith("delta: ")]
    assert sum(line != "delta: 0 rows" for line in loaded) == 1, loaded
check("two runs at once")

# Two loaders of one consumer, each with a place of its own, at the same time.
run(["create database second"])
check("a second loader of the same consumer", SECOND)
for turn in range(3):
    run([
        f"update users set name = 'two {turn}', updated_at = now() where id % 59 = {turn}",
        f"delete from users where id % 101 = {turn}",
    ])
    loaders = [start(which, targets, SERVER) for which in TARGETS for targets in (TARGETS, SECOND)]
    for loader in loaders:
        printed, said = loader.communicate()
        assert loader.returncode == 0, said
check("two loaders at once")
check("two loaders at once, the second", SECOND)
check("and the first again")

# Deltas that somebody asked for by hand, in another format than the loader reads: what is in them is in no other.
run(["update users set name = 'by hand', updated_at = now() where id % 71 = 0"])
for which in ("replica", "duckdb", "pandas"):
    Exports(SERVER, which, "ndjson").run("delta")
said = check("an export by another hand")
assert all(text.startswith("full: ") for text in said.values()), said

# A loader that was away for longer than its exports are kept.
run(["update users set name = 'pruned', updated_at = now() where id % 73 = 0"])
for consumer, format in CONSUMERS:
    Exports(SERVER, consumer, format).run("delta")
run(["delete from exports where consumer_id in ('replica', 'duckdb', 'pandas')"])
said = check("exports that are not kept any more")
assert all(text.startswith("full: ") for text in said.values()), said

run(["truncate users", "insert into users (name, email, created_at, updated_at) "
     "select 'n' || i, 'e' || i, now(), now() from generate_series(1, 500) as i"])
said = check("a TRUNCATE")
assert all(text.startswith("full: ") for text in said.values()), said

# One call of README's, an incremental by hand: it has no deletions, and no `operation`.
run(["update users set name = 'by hand', updated_at = now() where id % 7 = 0", "delete from users where id % 7 = 1"])
for consumer, format in CONSUMERS:
    Exports(SERVER, consumer, format).run("incremental")
run(["update users set name = 'after that', updated_at = now() where id % 7 = 2"])
said = check("an incremental by hand")
assert all(text.startswith("full: ") for text in said.values()), said

# An export that nobody has loaded, and whose file is gone.
run(["update users set name = 'gone', updated_at = now() where id % 7 = 3"])
for consumer, format in CONSUMERS:
    exports = Exports(SERVER, consumer, format)
    exports.open("DELETE", f"/exports/{exports.run('delta')['jobId']}").close()
run(["update users set name = 'not gone', updated_at = now() where id % 7 = 4"])
said = check("a file that is gone")
assert all(text.startswith("full: ") for text in said.values()), said
