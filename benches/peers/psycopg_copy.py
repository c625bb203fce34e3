"""The server's CSV, passed through by psycopg: QUERY FILE."""

import sys

import psycopg

query, path = sys.argv[1:]
with psycopg.connect() as connection, connection.cursor() as cursor, open(path, "wb") as file:
    with cursor.copy(f"copy ({query}) to stdout (format csv, header)") as blocks:
        for block in blocks:
            file.write(block)
