"""Two versions on one database: upgrade.py OLD NEW DATABASE_URL FOLDER. tests/upgrade.sh says which.

The oracle is a copy of the table that is kept by the files alone, as a consumer keeps it, and the table itself: at each look both are equal,
and no row came twice in one version.
"""

import atexit
import csv
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

OLD, NEW, URL, FOLDER = sys.argv[1:]
RANDOM = random.Random(7)
DATASETS = """
[[dataset]]
name = "items"
table = "items"
created_at = "created_at"
updated_at = "updated_at"
deleted = "is_deleted"
"""
DATASETS_FILE = pathlib.Path(FOLDER, "datasets.toml")
DATASETS_FILE.write_text(DATASETS)


def sql(text):
    done = subprocess.run(["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", URL], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {text}: {done.stderr}")
    return done.stdout.strip()


def wait_for(what, condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    sys.exit(f"error: waited in vain: {what}")


class Process:
    """A version that runs."""

    def __init__(self, binary, *arguments, **settings):
        self.version = "old" if binary == OLD else "new"
        self.log = pathlib.Path(FOLDER, f"{self.version}-{time.monotonic_ns()}.log")
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "DATABASE_URL": URL, "DATASETS": str(DATASETS_FILE),
                       "OUTPUT_DIR": f"{FOLDER}/output", "PORT": "0", "LOG_FORMAT": "json", "LEASE_SECONDS": "2", **settings}
        self.child = subprocess.Popen([binary, *arguments], env=environment, cwd=FOLDER, stderr=self.log.open("w"))
        # One that outlived this would hold up whoever waits for its output.
        atexit.register(self.child.kill)
        self.address = None
        if not arguments:
            self.address = wait_for(f"the {self.version} one listens", lambda: self.said("listening") or self.ended())[0]["address"]

    def ended(self):
        if self.child.poll() is not None:
            sys.exit(f"error: the {self.version} one ended: {self.log.read_text()[-2000:]}")

    def said(self, event):
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if line.get("event") == event]

    def call(self, method, path, consumer=None):
        request = urllib.request.Request(self.address + path, method=method, headers={"X-Consumer-ID": consumer} if consumer else {})
        with urllib.request.urlopen(request, timeout=70) as answer:
            return answer.read()

    def submit(self, kind, consumer):
        return json.loads(self.call("POST", f"/exports/{kind}", consumer))["jobId"]

    def job(self, job):
        status = {"status": "pending"}
        while status["status"] in ("pending", "processing"):
            status = json.loads(self.call("GET", f"/exports/{job}?wait=60"))
        return status

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        if code := self.child.wait(30):
            sys.exit(f"error: the {self.version} one ended by {code}")

    def kill(self):
        self.child.kill()
        self.child.wait()


class Consumer:
    """Who keeps a copy by the exports of one lane, each as it comes, from whichever version."""

    def __init__(self, name, kind):
        self.name, self.kind, self.rows, self.seen, self.number = name, kind, {}, set(), 0

    def take(self, asked, told, kind=None):
        """Asks one version for an export, waits for it by another, and loads it."""
        job = told.job(asked.submit(kind or self.kind, self.name))
        if job["status"] != "completed":
            sys.exit(f"error: {job}")
        self.load(told, job)
        return job

    def load(self, told, job):
        self.number += 1
        if job["number"] != self.number:
            sys.exit(f"error: the export {job['number']} came as the {self.number}.")
        if job["exportType"] == "full":
            self.rows, self.seen = {}, set()
        for row in csv.DictReader(io.StringIO(told.call("GET", f"/exports/{job['jobId']}/download").decode())):
            gone = row.pop("operation", None) == "DELETE"
            version = (row["id"], row["version"], gone)
            if version in self.seen:
                sys.exit(f"error: {self.name} has {version} twice: {job}")
            self.seen.add(version)
            if gone:
                self.rows.pop(row["id"], None)
            else:
                self.rows[row["id"]] = row["version"]

    def is_right(self, table):
        """Whether the copy is the table. An incremental tells of no deletion."""
        mine = self.rows if self.kind == "delta" else {row: version for row, version in self.rows.items() if row in table}
        if mine != table:
            wrong = {row: (mine.get(row), table.get(row)) for row in mine.keys() | table.keys() if mine.get(row) != table.get(row)}
            sys.exit(f"error: {self.name} is not as the table: {dict(list(wrong.items())[:10])}")


class Late:
    """A transaction that is open while exports run, and commits after them."""

    def __init__(self, text):
        self.psql = subprocess.Popen(["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", URL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.psql.stdin.write(f"begin; {text} select 'open';\n")
        self.psql.stdin.flush()
        assert self.psql.stdout.readline().strip() == "open"

    def commit(self):
        self.psql.communicate("commit;\n")
        assert self.psql.returncode == 0


def table():
    lines = sql("select id || ' ' || version from items where not is_deleted").splitlines()
    return dict(line.split(" ") for line in lines)


NEXT = iter(range(1000, 10**9))


def write():
    """Some changes, one transaction each."""
    some = f"(select id from items order by random() limit {RANDOM.randint(1, 5)})"
    sql(f"insert into items (id) select {next(NEXT)};"
        f"update items set version = version + 1, updated_at = now() where id in {some};"
        f"update items set is_deleted = true, version = version + 1, updated_at = now() where not is_deleted and id in {some};"
        f"delete from items where not is_deleted and id in {some};")


def side_by_side(old, new, consumers, rounds):
    """Exports that one accepts and either runs, with changes and late commits between them."""
    for turn in range(rounds):
        write()
        late = Late(f"insert into items (id) values ({next(NEXT)}); update items set version = version + 1 where id % 7 = {turn % 7};")
        for consumer in consumers:
            asked, told = RANDOM.choice([(old, new), (new, old), (old, old), (new, new)])
            consumer.take(asked, told)
        late.commit()


def look(process, consumers):
    """Nothing is under way: after one more export each copy is the table."""
    for consumer in consumers:
        consumer.take(process, process)
        consumer.is_right(table())
    print(f"ok: {len(table())} rows, {', '.join(f'{it.name} by {it.number} exports' for it in consumers)}", flush=True)


def step(what):
    print(f"--- {what}", flush=True)


sql("create table items (id bigint primary key, version int not null default 1, is_deleted boolean not null default false,"
    " created_at timestamptz not null default now(), updated_at timestamptz not null default now());"
    "insert into items (id) select generate_series(1, 300)")
consumers = [Consumer("delta-1", "delta"), Consumer("delta-2", "delta"), Consumer("incremental-1", "incremental")]

step("the old one alone")
assert Process(OLD, "migrate").child.wait() == 0
NEWEST = "select max(version) from cdc_export.migrations"
known = int(sql(NEWEST))
assert Process(OLD, "track", "items").child.wait() == 0
old = Process(OLD)
for consumer in consumers:
    consumer.take(old, old, "full")
write()
look(old, consumers)

step("the new one starts beside it, and migrates")
new = Process(NEW)
newest = int(sql(NEWEST))
print(f"ok: migrations {known + 1} to {newest}" if newest > known else f"ok: no migration since {known}", flush=True)
side_by_side(old, new, consumers, 10)
look(old, consumers)
look(new, consumers)

step("one accepts, and the other runs it")
seen = set()
for _ in range(200):
    write()
    for consumer in consumers:
        accepting = RANDOM.choice([old, new])
        job = consumer.take(accepting, accepting)["jobId"]
        running = next(it for it in (old, new) if any(line["jobId"] == job for line in it.said("export_started")))
        seen.add((accepting.version, running.version))
    if len(seen) == 4:
        break
else:
    sys.exit(f"error: accepted and run by {seen} alone")
look(new, consumers)

step("one dies between commit and publication, and the other publishes")
for dying, living in ((OLD, NEW), (NEW, OLD)):
    old.stop()
    new.stop()
    write()
    first = Process(dying, FAILPOINTS="worker.committed=kill")
    job = first.submit("delta", "delta-1")
    wait_for("it dies", lambda: first.child.poll() is not None)
    both = {living: Process(living)}
    other = both[living]
    consumers[0].load(other, other.job(job))
    consumers[0].is_right(table())
    both[dying] = Process(dying)
    old, new = both[OLD], both[NEW]

step("both are killed now and then")
kills = 0
for turn in range(12):
    write()
    asked = RANDOM.choice([old, new])
    jobs = [(consumer, asked.submit(consumer.kind, consumer.name)) for consumer in consumers]
    time.sleep(RANDOM.uniform(0, 0.1))
    if RANDOM.random() < 0.5:
        old.kill()
        old = Process(OLD)
    else:
        new.kill()
        new = Process(NEW)
    kills += 1
    for consumer, job in jobs:
        told = RANDOM.choice([old, new])
        consumer.load(told, told.job(job))
print(f"ok: {kills} kills", flush=True)
look(new, consumers)

step("back to the old one")
new.stop()
old.stop()
old = Process(OLD)
write()
look(old, consumers)
side_by_side(old, old, consumers, 3)
look(old, consumers)

step("and to the new one again")
old.stop()
new = Process(NEW)
write()
look(new, consumers)
full = Consumer("later", "delta")
full.take(new, new, "full")
full.is_right(table())
new.stop()
