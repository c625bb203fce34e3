"""Keeps a table in a DuckDB file equal to the source: `python load_duckdb.py INBOX FILE TABLE`."""

import duckdb

from inbox import Inbox, arguments, need_full


def columns(relation):
    return dict(zip(relation.columns, relation.types))


def quoted(names):
    return ", ".join('"' + name.replace('"', '""') + '"' for name in names)


folder, file, table = arguments("INBOX FILE TABLE")
inbox = Inbox(folder)
with duckdb.connect(file) as target:
    target.execute("create table if not exists cdc_loads (loaded text primary key, job text, digest text)")
    job, digest = target.execute("select job, digest from cdc_loads where loaded = ?", [table]).fetchone() or ("", "")
    for export in inbox.exports(digest):
        live = f"select {quoted(export.columns)} from read_parquet(?)"
        if export.operation:
            live += f" where {quoted([export.operation])} <> 'DELETE'"
        # The rows and the digest of their export are committed together, so that the next run goes on behind it.
        target.begin()
        if export.replaces:
            # Each column has the type that it has in the source.
            target.execute(f"create or replace table {table} as {live}", [export.files])
        else:
            # The values of a new column in rows that nobody changed are in no delta.
            if columns(target.sql(live, params=[export.files])) != columns(target.table(table)):
                need_full(f"the export {export.number} has other columns")
            key = quoted(export.key)
            target.execute(f"delete from {table} where ({key}) in (select {key} from read_parquet(?))", [export.files])
            target.execute(f"insert into {table} by name {live}", [export.files])
        job = export.job
        target.execute("insert or replace into cdc_loads values (?, ?, ?)", [table, job, export.digest])
        target.commit()
# For `POST /exports/{jobId}/ack`.
print(job)
