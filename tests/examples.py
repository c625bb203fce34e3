"""Runs the consumer of examples/ beside changes of the demo table, and compares its copy with it. See guides.sh.

    python tests/examples.py SERVER CONSUMER      with libpq's variables for the service's database, and the Rust example
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg

SERVER, RUST = sys.argv[1:]
FOLDER = Path(tempfile.mkdtemp())
INDEX = FOLDER / "index.json"


def copied():
    """Brings the copy up to date, and returns the names by id."""
    subprocess.run([RUST, SERVER, "users", INDEX], check=True)
    return {row["id"]: row["name"] for row in json.loads(INDEX.read_text())["documents"].values()}


def check(*statements):
    with psycopg.connect("") as connection:
        for statement in statements:
            connection.execute(statement)
    with psycopg.connect("") as connection:
        users = dict(connection.execute("select id, name from users where not is_deleted"))
    assert copied() == users, statements


check()
check("update users set name = 'changed' where id % 1000 = 0", "delete from users where id % 1001 = 0")
# Another process asks for an export in the consumer's name, and in another format than the consumer reads.
check("update users set is_deleted = true where id % 1002 = 0")
headers = ["-H", "X-Consumer-ID: json-index", "-H", "Content-Type: application/json"]
body = json.dumps({"format": "csv"})
subprocess.run(["curl", "-sf", "-o", FOLDER / "answer", *headers, "-d", body, f"{SERVER}/exports/delta"], check=True)
check("update users set name = 'again' where id % 1003 = 0")
check("create table kept as select * from users where id <= 50", "truncate users", "insert into users select * from kept")
# A copy that was lost begins with the first export that is kept.
INDEX.unlink()
check("drop table kept")
