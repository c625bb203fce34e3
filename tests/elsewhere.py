"""Runs the blocks of docs/guides/elsewhere.md, and compares each value that a reader has with the table's. elsewhere.sh calls it.

    python tests/elsewhere.py SERVER [SECTION…]

With libpq's variables for the service's database, in a folder for files. Postgres's own text of each value says what is right. A
reader whose program is missing is named and skipped, but fails if CI is `true`.
"""

import contextlib
import datetime
import decimal
import json
import os
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psycopg

SERVER, CHOSEN = sys.argv[1], sys.argv[2:]
PAGE = Path(__file__).resolve().parent.parent / "docs/guides/elsewhere.md"
PROGRAMS = {"Spark": ["java"], "MariaDB": ["mariadbd", "mariadb-install-db", "mariadb"], "SQLite": ["sqlite3"]}
os.environ["PATH"] += ":/usr/sbin"
os.environ |= {"TZ": "UTC", "DLT_DATA_DIR": "dlt", "RUNTIME__DLTHUB_TELEMETRY": "false"}


# The table, and a value as it is compared.


def canonical(kind, value):
    """A value of a reader in one form for all readers: its type if it has one, else the text that is in a CSV file."""
    if value is None:
        return None
    match kind:
        case "smallint" | "integer" | "bigint":
            return value if isinstance(value, float) else str(value)
        case "real":
            return struct.unpack("f", struct.pack("f", float(value)))[0].hex()
        case "double precision":
            return float(value).hex()
        case "boolean":
            known = {"t": "true", "f": "false", "True": "true", "False": "false", "1": "true", "0": "false"}
            return known.get(str(value), value)
        case "bytea":
            return "\\x" + value.hex() if isinstance(value, bytes) else value
        case "uuid":
            return str(value)
        case "numeric" if isinstance(value, decimal.Decimal):
            return format(value, "f")
        case "date":
            return datetime.date.fromisoformat(str(value))
        case "timestamp with time zone" | "timestamp without time zone":
            value = datetime.datetime.fromisoformat(str(value).replace("Z", "+00:00"))
            return value.astimezone(datetime.UTC).replace(tzinfo=None) if value.tzinfo else value
        case "time without time zone":
            if isinstance(value, datetime.timedelta):
                return (datetime.datetime.min + value).time()
            return datetime.time.fromisoformat(str(value))
        case "integer[]" | "text[]" if not isinstance(value, str):
            return list(value)
        case "integer[]" | "text[]" if value.startswith("["):
            return json.loads(value)
        case _:
            return value


def source(has_lists):
    """The kinds of the table's columns, and its rows by id as Postgres writes their values. A list is one, if it has one dimension."""
    with psycopg.connect("", options="-c timezone=UTC -c datestyle=iso") as connection:
        kinds = dict(
            connection.execute(
                "select attname, format_type(atttypid, null) from pg_attribute "
                "where attrelid = 'orders'::regclass and attnum > 0 and not attisdropped order by attnum"
            ).fetchall()
        )
        # `concat` calls the output function of a type; a cast of an `inet` to text doesn't.
        texts = ", ".join(f"case when {name} is not null then concat({name}) end" for name in kinds)
        rows = [dict(zip(kinds, row)) for row in connection.execute(f"select {texts} from orders order by id").fetchall()]
        lists = connection.execute("select stock, tags from orders order by id").fetchall()
    for row, (stock, tags) in zip(rows, lists):
        for name, kind in kinds.items():
            row[name] = canonical(kind, row[name])
        if has_lists:
            is_list = "{{" not in str(row["stock"])
            row |= {"stock": stock, "tags": tags} if is_list else {"stock": None, "tags": None}
    return kinds, {row["id"]: row for row in rows}


def compare(reader, rows):
    """Fails unless a reader has the table's rows, but for what the page says of it."""
    kinds, expected = source(reader.endswith("lists"))
    lost = 0
    for row in expected.values():
        for name in row:
            kept = LOSSES.get(reader, lambda name, value: value)(name, row[name])
            lost += kept != row[name]
            row[name] = kept
    assert lost or reader not in LOSSES, f"{reader} loses nothing, other than the page says"
    found = {}
    for row in rows:
        row = {name: canonical(kinds[name], value) for name, value in row.items() if name in kinds}
        assert row.keys() == kinds.keys(), f"{reader} lacks columns: {kinds.keys() - row.keys()}"
        assert row["id"] not in found, f"{reader} has the id {row['id']} twice"
        found[row["id"]] = row
    assert found.keys() == expected.keys(), f"{reader} has other ids: {found.keys() ^ expected.keys()}"
    pairs = [(id, name, value, found[id][name]) for id, row in expected.items() for name, value in row.items()]
    faults = [str(pair) for pair in pairs if pair[2] != pair[3]]
    heading = f"{reader}: {len(faults)} other values (id, column, the table's, the reader's):"
    assert not faults, "\n".join([heading, *faults[:20]])
    losses = f", {lost} values lost as the page says" if lost else ""
    print(f"ok: {reader}: {len(found)} rows of {len(kinds)} columns{losses}", flush=True)


def compare_one_column(reader, rows):
    """Fails unless a reader has the rows of `notes`, whose only column has a name that needs quotes."""
    # dlt adds columns of its own to some tables.
    rows = [[pair for pair in row.items() if not pair[0].startswith("_dlt")] for row in rows]
    values = ["007", "a"] if reader == "Spark CSV" else ["007", "a", None, None]
    found = sorted((value for ((_, value),) in rows), key=lambda value: (value is None, value or ""))
    assert found == values, f"{reader}, one column: {found}"
    names = {name for ((name, _),) in rows}
    expected = 'no, ""te""\nof it' if reader == "Polars CSV" else 'no, "te"\nof it'
    assert reader.startswith("dlt") or names == {expected}, f"{reader}, one column: {names}"
    print(f"ok: {reader}, one column", flush=True)


def empty_is_null(name, value):
    return None if value == "" else value


def json_null_is_null(name, value):
    return None if name in ("raw", "doc") and value == "null" else value


def json_is_compact(name, value):
    """As SQLite writes it. No text of the table's JSON has a space."""
    value = json_null_is_null(name, value)
    return value.replace(" ", "") if name in ("raw", "doc") and value else value


def no_list_is_empty(name, value):
    return [] if name in ("stock", "tags") and value is None else value


LOSSES = {
    "ClickHouse lists": no_list_is_empty,
    "pandas CSV": empty_is_null,
    "MariaDB NDJSON": json_null_is_null,
    "SQLite NDJSON": json_is_compact,
    "SQLite CSV": empty_is_null,
}


# The readers. Each runs a block, and yields rows as dicts.


def run(block, **names):
    exec(compile(block, "elsewhere.md", "exec"), names)
    return names


def by_names(cursor):
    return [dict(zip([column[0] for column in cursor.description], row)) for row in cursor.fetchall()]


def in_pandas(block):
    import pandas

    orders = run(block)["orders"]
    for row in zip(*(orders[name].tolist() for name in orders)):
        yield {name: None if value is pandas.NA else value for name, value in zip(orders, row)}


def in_polars(block):
    return run(block)["orders"].to_dicts()


def in_pyarrow(block):
    return run(block)["orders"].to_pylist()


def in_duckdb(block):
    import duckdb

    with duckdb.connect() as database:
        database.execute("set timezone = 'UTC'")
        database.execute(block)
        return by_names(database.execute("select * from orders"))


def in_spark(block):
    from pyspark.sql import SparkSession

    settings = {"sql.session.timeZone": "UTC", "ui.enabled": "false", "driver.bindAddress": "127.0.0.1", "driver.host": "127.0.0.1"}
    builder = SparkSession.builder.master("local[1]")
    for name, value in settings.items():
        builder = builder.config(f"spark.{name}", value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    # Java stays in the folder in which it was started.
    frame = run(block.replace('"orders.', f'"{Path.cwd()}/orders.'), spark=spark)["orders"]
    # Python's own times would go through this machine's time zone.
    times = {name for name, kind in frame.dtypes if kind.startswith(("timestamp", "date"))}
    columns = [f"cast({name} as string) as {name}" if name in times else f"`{name}`" for name in frame.columns]
    return [row.asDict() for row in frame.selectExpr(*columns).collect()]


def in_clickhouse(block):
    from chdb import session

    with contextlib.closing(session.Session()) as database:
        for statement in ("create database shop", "use shop", block):
            database.query(statement)
        binary = "photo" if "CSVWithNames" in block else "concat('\\\\x', lower(hex(photo)))"
        exact = "output_format_json_quote_denormals = 1, output_format_json_quote_64bit_integers = 1"
        exact += ", output_format_json_quote_decimals = 1, output_format_decimal_trailing_zeros = 1"
        rows = database.query(f"select * replace ({binary} as photo) from orders settings {exact}", "JSONEachRow")
        return [json.loads(line) for line in str(rows).splitlines()]


def in_dlt(block):
    import duckdb

    names = run(block)
    yield from rows_of_dlt()
    names["pipeline"].drop()


def rows_of_dlt():
    import duckdb

    with duckdb.connect("shop.duckdb") as database:
        database.execute("set timezone = 'UTC'")
        return by_names(database.execute("select * from raw.orders"))


def in_sqlite(block):
    Path("shop.db").unlink(missing_ok=True)
    subprocess.run(["sqlite3", "-batch", "-bail", "shop.db"], input=block, text=True, check=True)
    with contextlib.closing(sqlite3.connect("shop.db")) as database:
        return by_names(database.execute("select * from orders"))


def in_mariadb(block):
    """In a server of its own, which nobody else can reach. It refuses to run as root."""
    folder = Path("mariadb").absolute()
    folder.mkdir()
    place = ["--no-defaults", f"--datadir={folder}/data"]
    if os.geteuid() == 0:
        shutil.chown(folder, "mysql")
        place.append("--user=mysql")
    socket = f"--socket={folder}/socket"
    client = ["mariadb", "--no-defaults", "--user=root", socket, "--default-character-set=utf8mb4", "--local-infile=1"]
    with open("mariadb.log", "w") as log:
        output = {"stdout": log, "stderr": log}
        install = ["mariadb-install-db", *place, "--skip-test-db", "--auth-root-authentication-method=normal"]
        subprocess.run(install, check=True, **output)
        server = subprocess.Popen(["mariadbd", *place, "--skip-networking", socket, "--local-infile=1"], **output)
    try:
        while subprocess.run([*client, "-e", "create database if not exists shop"], capture_output=True).returncode:
            assert server.poll() is None, Path("mariadb.log").read_text()
            time.sleep(0.1)
        said = subprocess.run([*client, "--show-warnings", "shop"], input=block, text=True, capture_output=True, check=True)
        assert not said.stdout, f"MariaDB warns: {said.stdout}"
        texts = {name: f"concat({name})" for name in source(False)[0]}
        texts["photo"] = "concat('\\\\x', lower(hex(photo)))"
        members = ", ".join(f"'{name}', {text}" for name, text in texts.items())
        select = ["-e", f"select json_object({members}) from orders"]
        rows = subprocess.run([*client, "--raw", "--skip-column-names", "shop", *select], capture_output=True, check=True)
        return [json.loads(line) for line in rows.stdout.decode().split("\n") if line]
    finally:
        server.terminate()
        server.wait()


READERS = {
    "pandas": in_pandas,
    "Polars": in_polars,
    "pyarrow": in_pyarrow,
    "DuckDB": in_duckdb,
    "Spark": in_spark,
    "ClickHouse": in_clickhouse,
    "dlt": in_dlt,
    "MariaDB": in_mariadb,
    "SQLite": in_sqlite,
}


# These blocks name each column. The other ones read a table of any columns.
NAMED = ("ClickHouse", "MariaDB", "SQLite")


# The page.


def sections():
    parts = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.M)
    found = dict(zip(parts[1::2], parts[2::2]))
    assert list(found) == [*READERS, "Arrays", "A delta"], list(found)
    return parts[0], found


def fetch(command, dataset, form, export_type="full"):
    """Runs the page's command for another format, type or dataset, in this folder."""
    changes = {" full": f" {export_type}", "dataset orders": f"dataset {dataset}", "csv": form, "http://localhost:8080": SERVER}
    for old, new in changes.items():
        assert old in command
        command = command.replace(old, new)
    done = subprocess.run(["bash", "-euc", command], text=True, capture_output=True)
    assert not done.returncode, f"{command}{done.stderr}"


def delta_in_dlt(block, command):
    """The function of the page, which gets a delta with each of its operations after a full export."""
    names = run(block)
    with psycopg.connect("") as connection:
        connection.execute("delete from orders where id in (2, 101)")
        connection.execute("update orders set note = '', code = null, total = total * 2 where id in (3, 102)")
        connection.execute("insert into orders (id, note) values (201, 'NULL'), (202, '')")
    os.remove("orders.parquet")
    fetch(command, "orders-text", "parquet", "delta")
    names["load"]("orders.parquet", "delta")
    compare("dlt, a delta", rows_of_dlt())


def main():
    introduction, found = sections()
    (command,) = re.findall(r"^```sh\n(.*?)^```$", introduction, flags=re.M | re.S)
    (table,) = re.findall(r"^```sql\n(.*?)^```$", introduction, flags=re.M | re.S)
    assert table in Path(__file__).with_suffix(".sql").read_text(), "the page shows another table than elsewhere.sql makes"
    # The page says what replaces these columns if a reader needs their types.
    ((lists, texts),) = re.findall(r"`(stock [^`]*)` in place of\s+`(stock [^`]*)`", found["Arrays"])
    skipped, wrong = [], []
    for folder, dataset in (("plain", "orders"), ("text", "orders-text"), ("lists", "orders-lists")):
        os.mkdir(folder)
        with contextlib.chdir(folder):
            for form in ("csv", "parquet", "ndjson"):
                fetch(command, dataset, form)
    os.mkdir("one")
    with contextlib.chdir("one"):
        for form in ("csv", "parquet"):
            fetch(command, "notes", form)
    for section, read in READERS.items():
        if CHOSEN and section not in CHOSEN:
            continue
        missing = [program for program in PROGRAMS.get(section, []) if not shutil.which(program)]
        if missing:
            print(f"not run: {section} needs {', '.join(missing)}", flush=True)
            skipped.append(section)
            continue
        # Each has its format in bold above it.
        block = r"^\*\*(CSV|Parquet|NDJSON)\b(?:(?!```).)*```(?:python|sql)\n(.*?)^```$"
        blocks = re.findall(block, found[section], flags=re.M | re.S)
        assert len(blocks) == found[section].count("\n```") // 2, f"{section} has a block of no format"
        # The page's table has the settings of the dataset.
        (settings,) = re.findall(rf"^\| \[{section}\].*?\|.*?\|(.*?)\|", introduction, flags=re.M)
        try:
            with contextlib.chdir("text" if '"text"' in settings else "plain"):
                for form, block in blocks:
                    compare(f"{section} {form}", read(block))
            with contextlib.chdir("lists"):
                for block in (block for form, block in blocks if form == "Parquet"):
                    compare(f"{section} lists", read(block.replace(texts, lists)))
            with contextlib.chdir("one"):
                for form, block in blocks if section not in NAMED else []:
                    # The page says to name the columns of JSON in the block of Polars.
                    block = block.replace('.with_columns(polars.col("raw", "doc").cast(polars.String))', "")
                    compare_one_column(f"{section} {form}", read(block))
        # One reader's fault doesn't hide another's.
        except Exception:
            traceback.print_exc()
            wrong.append(section)
    if "dlt" in (CHOSEN or READERS):
        # It changes the table, so it is the last one.
        (block,) = re.findall(r"^```python\n(.*?)^```$", found["dlt"], flags=re.M | re.S)
        with contextlib.chdir("text"):
            delta_in_dlt(block, command)
    if wrong:
        sys.exit(f"error: the page is wrong about {', '.join(wrong)}")
    if skipped and os.environ.get("CI") == "true":
        sys.exit(f"error: CI runs all readers of the page, and {', '.join(skipped)} could not be run")


main()
