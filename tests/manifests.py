"""Runs docs/guides/manifests.md, block by block, and holds a manifest against what Redshift's COPY reads. See guides.sh.

    python tests/manifests.py SERVER folder            what the guide says of a folder
    python tests/manifests.py SERVER bucket STORE      what it says of a bucket; STORE is the address of an S3

With libpq's variables for the service's database, which has the dataset `orders`; the current folder has the service's `output`.
"""

import copy
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import duckdb
import duckdb_extension_httpfs
import psycopg
from exports import BASE, call
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parent.parent
STAGE, STORE = sys.argv[2], "".join(sys.argv[3:])
PLACES = {
    "folder": ["An export of several files", "DuckDB", "pandas and pyarrow"],
    "bucket": ["From a bucket", "Follow a lane"],
    "nowhere": ["Check before you load", "As the vendors describe it"],
}
LANE = "acme-exports/shop/orders/warehouse"
database = duckdb.connect(config={"extension_directory": "extensions"})
names = {}


def blocks():
    """The blocks of the guide by their sections. A section that nobody runs isn't passed over in silence."""
    sections = re.split(r"^## (.*)$", (ROOT / "docs/guides/manifests.md").read_text(), flags=re.M)[1:]
    found = dict(zip(sections[::2], sections[1::2]))
    assert list(found) == sum(PLACES.values(), []), list(found)
    return {name: re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.M | re.S) for name, text in found.items()}


def run(kind, block):
    block = block.replace("http://localhost:8080", BASE)
    block = block.replace("http://minio.internal:9000", STORE).replace("minio.internal:9000", STORE.removeprefix("http://"))
    match kind:
        case "sh":
            subprocess.run(["bash", "-euc", block], check=True)
        case "sql":
            database.execute(block)
        case "python":
            exec(compile(block, "manifests.md", "exec"), names)


def source():
    with psycopg.connect("") as connection:
        return connection.execute("select id, total, note from orders order by id").fetchall()


def in_duckdb():
    return database.execute("select id, total, note from orders order by id").fetchall()


def compare(what, rows, expected):
    assert rows == expected, f"{what}: {len(rows)} rows, not {len(expected)}; {len(set(rows) ^ set(expected))} are others"
    print(f"ok: {what}: {len(rows)} orders")


def rows_of(table):
    return sorted(tuple(row.values()) for row in table.to_pylist())


def export(export_type, *changes):
    """A manifest as the service wrote it, of an export after these changes."""
    with psycopg.connect("") as connection:
        for change in changes:
            connection.execute(change)
    command = ["cdc-export", "export", export_type, "--consumer", "warehouse", "--dataset", "orders", "--format", "parquet"]
    job = json.loads(subprocess.run([*command, "--json", "--server", BASE], check=True, capture_output=True).stdout)
    with urllib.request.urlopen(f"{STORE}/{LANE}/_manifests/{job['number']:020}.json") as answer:
        written = answer.read()
    assert written == call(f"/exports/{job['jobId']}/manifest")
    return json.loads(written)


def hold_against_redshift(manifest):
    """A manifest that COPY would refuse has to be refused here, too."""
    schema = json.loads((ROOT / "tests/redshift_manifest.json").read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    validator.validate(manifest)
    assert manifest["meta"] == {
        name: sum(entry["meta"][name] for entry in manifest["entries"]) for name in ("content_length", "record_count")
    }
    first = manifest["entries"][0]
    for wrong in [
        {**first, "meta": {**first["meta"], "content_length": str(first["meta"]["content_length"])}},
        {**first, "meta": {"record_count": 1}},
        {**first, "meta": {**first["meta"], "contentLength": 1}},
        {**first, "mandatory": "true"},
        {**first, "mandatory": False},
        {**first, "url": first["url"].removeprefix("s3://")},
        {**first, "url": "s3://acme-exports"},
        {"url": first["url"]},
        {name: value for name, value in first.items() if name != "url"},
        {**first, "path": "a"},
    ]:
        bad = copy.deepcopy(manifest)
        bad["entries"][0] = wrong
        assert not validator.is_valid(bad), f"the schema allows {wrong}"
    assert not validator.is_valid({**manifest, "entries": []})
    print(f"ok: a manifest of {len(manifest['entries'])} files, in the form that COPY reads")


def apply(manifest, files):
    """As loading.md says."""
    if manifest["export"]["type"] == "full":
        database.execute("create or replace table orders as select * from read_parquet(?)", [files])
    else:
        database.execute("delete from orders where id in (select id from read_parquet(?))", [files])
        live = "select * exclude (operation) from read_parquet(?) where operation <> 'DELETE'"
        database.execute(f"insert into orders by name {live}", [files])


def refused(following, *where):
    try:
        list(following(LANE, *where))
    except LookupError:
        return True


guide = blocks()
expected = source()
if STAGE == "folder":
    for section in PLACES["folder"]:
        for kind, block in guide[section]:
            database.execute("create or replace table orders as select null as id, null as total, null as note")
            run(kind, block)
            if kind == "sql":
                compare(section, in_duckdb(), expected)
    compare("pyarrow", rows_of(names["table"]), expected)
    assert len(names["frame"]) == len(expected) and len(names["paths"]) > 1
    assert [Path(path).name for path in names["paths"]] == [Path(line).name for line in open("uris.txt").read().split()]
    assert json.load(open("manifest.json"))["export"] == names["manifest"]["export"]
    subprocess.run(["cdc-export", "verify", "output"], check=True)
else:
    # `install httpfs` then finds it installed.
    (extension,) = Path(duckdb_extension_httpfs.__file__).parent.glob("extensions/*/httpfs.duckdb_extension")
    database.execute(f"install '{extension}'")
    manifests = [export("full")]
    hold_against_redshift(manifests[0])
    for kind, block in guide["From a bucket"]:
        run(kind, block)
    compare("a bucket, by DuckDB", in_duckdb(), expected)
    compare("a bucket, by pyarrow", rows_of(names["table"]), expected)
    manifests.append(export("delta", "delete from orders where id % 7 = 0", "update orders set total = total * 2"))
    manifests.append(export("delta", "update orders set note = 'new' where id % 5 = 0", "insert into orders values (-1, 0, '')"))
    for kind, block in guide["Follow a lane"]:
        run(kind, block)
    following = names["following"]
    assert list(following(LANE, 0, None)) == manifests and list(following(LANE, 3, manifests[2]["digest"])) == []
    assert list(following(LANE, 1, manifests[0]["digest"])) == manifests[1:]
    assert refused(following, 1, manifests[1]["digest"]) and refused(following, 2, None)
    assert len(manifests[1]["entries"]) > 1
    for manifest in following(LANE, 0, None):
        apply(manifest, [entry["url"] for entry in manifest["entries"]])
    compare("a lane, followed", in_duckdb(), source())
    settings = {"AWS_ENDPOINT_URL": STORE, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "eu-central-1"}
    subprocess.run(["cdc-export", "verify", "s3://acme-exports/shop"], check=True, env=os.environ | settings)
