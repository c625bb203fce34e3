#!/usr/bin/env python3
"""Feeds the regression scripts to psql, statement by statement. tests/regress/run.sh says how to start it.

After each statement that may have made a table, every table with a primary key is tracked, and a consumer gets a full export of it. After each
twelve statements it gets a delta of each. What it has then must be what another consumer's full export has at that moment: the script's
session waits meanwhile, and nobody else writes.
"""

import collections
import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

SCRIPTS = """char varchar text int8 numeric uuid enum money rangetypes multirangetypes timestamptz interval arrays rowtypes domain
    insert insert_conflict update delete merge copy2 triggers identity generated generated_stored generated_virtual returning with rules
    updatable_views foreign_key constraints inherit truncate partition_prune transactions portals prepared_xacts plpgsql vacuum indexing
    without_overlaps""".split()
STATEMENTS_BETWEEN_DELTAS = 12
SECONDS_FOR_A_STATEMENT = 60

TABLES = """select c.oid, format('%I.%I', n.nspname, c.relname)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and c.relpersistence = 'p' and not c.relispartition
      and n.nspname !~ '^(pg_|information_schema|cdc_export)'
      and exists (select from pg_index x where x.indrelid = c.oid and x.indisprimary)
      and not exists (select from pg_inherits i where c.oid in (i.inhrelid, i.inhparent) and c.relkind = 'r')"""


class Psql:
    """A session of psql, whose answer to each piece of a script is waited for."""

    MARK = "--- answered ---"

    def __init__(self, name, env):
        command = ["psql", "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=0", "-d", "regression"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, env={**env, "PGAPPNAME": name}, errors="replace", **pipes)

    def run(self, text):
        """Returns the lines of the answer. None: there is none in time, or the session has ended."""
        timer = threading.Timer(SECONDS_FOR_A_STATEMENT, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(f"{text}\n\\echo '{self.MARK}'\n")
            self.process.stdin.flush()
            lines = []
            for line in self.process.stdout:
                if line.rstrip("\n") == self.MARK:
                    return lines
                lines.append(line.rstrip("\n"))
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        return None


def statements(script):
    """Splits a script where a statement ends, or a command of psql. The rows of a COPY belong to their statement."""
    piece, quote, is_copy = [], None, False
    for line in script.splitlines():
        piece.append(line)
        if is_copy:
            is_copy = line != "\\."
        else:
            for token in re.findall(r"\$\w*\$|'|\"|--|/\*|\*/", line):
                if quote is None and token == "--":
                    break
                if quote is None and token != "*/":
                    quote = "*/" if token == "/*" else token
                elif token == quote:
                    quote = None
            code = line.split("--")[0].rstrip()
            is_copy = quote is None and bool(re.match(r"\s*copy\b.*\bfrom\s+stdin\b.*;$", code, re.I))
        is_end = quote is None and not is_copy and (line == "\\." or re.search(r";$|^\\|\\(gset|gexec|g|crosstabview)\b", line.split("--")[0].rstrip()))
        if is_end:
            yield "\n".join(piece)
            piece = []
    yield "\n".join(piece)


class Tables:
    """The tables that are tracked, and what the consumer has of each."""

    def __init__(self, binary, work, env, control):
        self.binary, self.work, self.control = binary, work, control
        self.rows, self.names, self.refused = {}, {}, set()
        self.counts, self.faults = collections.Counter(), []
        url = f"postgres://postgres@localhost/regression?host={env['PGHOST']}"
        self.env = {**env, "DATABASE_URL": url, "DATASETS": f"{work}/datasets.toml", "OUTPUT_DIR": f"{work}/exports"}

    def command(self, *arguments):
        return subprocess.run([self.binary, *arguments], env=self.env, capture_output=True, text=True, errors="replace")

    def export(self, kind, name, consumer):
        """The rows of an export, or why there are none."""
        folder = pathlib.Path(self.work, "inbox", consumer)
        done = self.command("export", kind, "--consumer", consumer, "--dataset", name, "--output", f"{folder}/")
        if done.returncode != 0:
            word = re.search(r"full_export_needed.*?\((\w+)\)", done.stderr)
            code = re.search(r"\b(not_tracked|table_missing|dataset_mismatch|permission_denied|internal)\b", done.stderr)
            return None, word.group(1) if word else code.group(1) if code else done.stderr.strip()
        self.counts[kind] += 1
        with open(done.stdout.split("  ")[0].strip(), newline="") as file:
            header, *rows = csv.reader(file)
        return header, rows

    def full(self, name, consumer):
        header, rows = self.export("full", name, consumer)
        return None if header is None else (header, collections.Counter(map(tuple, rows)))

    def write_catalog(self):
        block = lambda name: f'[[dataset]]\nname = "{name}"\ntable = {self.names[name]!r}\n\n'
        pathlib.Path(self.env["DATASETS"]).write_text("".join(map(block, self.names)))

    def look(self):
        """Tracks the tables that are new, and forgets those that are gone."""
        found = dict(line.split("\t") for line in self.control.run(TABLES + ";") or [] if line.count("\t") == 1)
        for name in [name for name in self.names if found.get(name[1:]) != self.names[name]]:
            del self.names[name]
            self.rows.pop(name, None)
        for oid, table in found.items():
            name = f"t{oid}"
            if name in self.names or name in self.refused or "'" in table:
                continue
            self.names[name] = table
            self.write_catalog()
            tracked = self.command("track", name)
            rows = self.full(name, "follower") if tracked.returncode == 0 else None
            if rows is None:
                self.refused.add(name)
                del self.names[name]
                self.write_catalog()
            else:
                self.rows[name] = rows
        self.write_catalog()

    def compare(self, where):
        """Gets a delta of each table, and compares."""
        key_of = "select array_to_json(cdc_export.primary_key(%s::regclass::oid));"
        for name in list(self.names):
            header, rows = self.export("delta", name, "follower")
            if header is None:
                self.counts[rows if " " not in rows else "other"] += 1
                # A table that is gone is no fault.
                if rows == "internal" or " " in rows and "there is no table" not in rows:
                    self.faults.append(f"{where}: {self.names[name]}: {rows}")
                self.command("track", name)
                fresh = self.full(name, "follower")
                if fresh is None:
                    self.refused.add(name)
                    del self.names[name]
                else:
                    self.rows[name] = fresh
                continue
            had, table = self.rows[name]
            if header[1:] != had:
                fresh = self.full(name, "follower")
                self.rows[name] = fresh or self.rows[name]
                continue
            key = [had.index(part) for part in json.loads(self.control.run(key_of % f"'{self.names[name]}'")[0])]
            by_key = {tuple(row[at] for at in key): row for row in table}
            for operation, *row in rows:
                by_key.pop(tuple(row[at] for at in key), None)
                if operation != "DELETE":
                    by_key[tuple(row[at] for at in key)] = tuple(row)
            self.rows[name] = (had, collections.Counter(by_key.values()))
            fresh = self.full(name, "oracle")
            self.counts["compared"] += 1
            if fresh is not None and fresh[1] != self.rows[name][1]:
                missing, extra = fresh[1] - self.rows[name][1], self.rows[name][1] - fresh[1]
                self.faults.append(f"{where}: {self.names[name]}: missing {list(missing)[:3]}, extra {list(extra)[:3]}")
                self.rows[name] = fresh


def main():
    binary, work, source, *chosen = sys.argv[1:]
    source = pathlib.Path(source).resolve()
    env = {**os.environ, "PG_ABS_SRCDIR": str(source), "PG_LIBDIR": "", "PG_DLSUFFIX": ".so", "PGTZ": "PST8PDT", "PGDATESTYLE": "Postgres, MDY"}
    subprocess.run(["psql", "-qXc", "create database regression template template0", "postgres"], env=env, check=True)
    control = Psql("control", env)
    tables = Tables(binary, work, env, control)
    for script in ["test_setup", *(chosen or SCRIPTS)]:
        path = source / "sql" / f"{script}.sql"
        if not path.exists():
            continue
        session, since = Psql("script", env), 0
        busy = "select count(*) from pg_stat_activity where application_name = 'script' and state <> 'idle'"
        for number, statement in enumerate(statements(path.read_text(errors="replace"))):
            if session.run(statement) is None:
                tables.counts["given up"] += 1
                break
            since += 1
            is_ddl = re.search(r"\b(create|alter)\s+(unlogged\s+)?table\b|\binherit\b", statement, re.I)
            if (is_ddl or since >= STATEMENTS_BETWEEN_DELTAS) and control.run(busy + ";") == ["0"]:
                if is_ddl:
                    tables.look()
                if since >= STATEMENTS_BETWEEN_DELTAS:
                    tables.compare(f"{script}, statement {number}")
                    since = 0
        session.process.kill()
        session.process.wait()
        tables.look()
        tables.compare(f"{script}, its end")
        print(script, dict(tables.counts), flush=True)
    for fault in tables.faults:
        print(f"FAULT {fault}")
    print(f"{tables.counts['compared']} comparisons, {len(tables.faults)} faults")
    sys.exit(bool(tables.faults) or tables.counts["compared"] == 0)


main()
