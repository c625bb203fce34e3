"""Runs the consumers of examples/ beside changes of the demo table, and compares their copies with it. See guides.sh.

    python tests/examples.py SERVER CONSUMER      with libpq's variables for the service's database, and the Rust example
"""

import json
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg

SERVER, RUST = sys.argv[1:]
PYTHON = Path(__file__).resolve().parent.parent / "examples" / "consumer.py"
FOLDER = Path(tempfile.mkdtemp())
COPY, INDEX = FOLDER / "copy.db", FOLDER / "index.json"


def copies():
    """Brings both copies up to date, and returns the names by id of each."""
    subprocess.run([sys.executable, PYTHON, SERVER, "users", COPY], check=True)
    subprocess.run([RUST, SERVER, "users", INDEX], check=True)
    with sqlite3.connect(COPY) as db:
        python = [json.loads(document) for (document,) in db.execute("select document from documents")]
    rust = json.loads(INDEX.read_text())["documents"].values()
    return [{row["id"]: row["name"] for row in rows} for rows in (python, rust)]


def check(*statements):
    with psycopg.connect("") as connection:
        for statement in statements:
            connection.execute(statement)
    with psycopg.connect("") as connection:
        users = dict(connection.execute("select id, name from users where not is_deleted"))
    assert copies() == [users, users], statements


check()
check("update users set name = 'changed' where id % 1000 = 0", "delete from users where id % 1001 = 0")
# Another process asks for an export in the consumer's name, and in another format than the consumer reads.
for consumer, form in [("sqlite-copy", "ndjson"), ("json-index", "csv")]:
    check("update users set is_deleted = true where id % 1002 = 0")
    header = [f"X-Consumer-ID: {consumer}", "Content-Type: application/json"]
    headers = [part for line in header for part in ("-H", line)]
    url = f"{SERVER}/exports/delta"
    subprocess.run(["curl", "-sf", "-o", FOLDER / "answer", *headers, "-d", json.dumps({"format": form}), url], check=True)
    check("update users set name = 'again' where id % 1003 = 0")
check("create table kept as select * from users where id <= 50", "truncate users", "insert into users select * from kept")
# A copy that was lost begins with the first export that is kept.
COPY.unlink()
INDEX.unlink()
check("drop table kept")
