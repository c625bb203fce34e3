#!/usr/bin/env bash
# What docs/guides/ says, for real: its loaders keep tables in another Postgres, in DuckDB and in pandas equal to the source, through
# changes, hard deletes, a TRUNCATE, crashes, lost answers, two loaders at once and an export that nobody has loaded. Then tests/formats.py, on the same service.
#
# `cargo build` comes first. Needs python3 with venv, psql, and a package index or a cache of its packages.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
binary=${BINARY:-$root/target/debug/cdc-export}
venv=$root/target/guides
[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check \
    duckdb==1.4.1 'pandas==2.3.3' pyarrow==22.0.0 'psycopg[binary]==3.2.12' zstandard==0.25.0

work=$(mktemp -d)
chmod 755 "$work"
cd "$work"
env -i PATH="$PATH" HOME="$HOME" DATA_DIR="$work/data" OUTPUT_DIR="$work/output" PORT=0 SEED_ROWS=20000 LOG_FORMAT=json "$binary" 2>log &
service=$!
trap 'kill $service; wait $service || true; rm -rf "$work"' EXIT
until grep -q '"listening"' log; do kill -0 $service || { cat log; exit 1; }; sleep 0.1; done
server=$(grep -o 'http://[0-9.:]*' log | tail -1)
export PGPASSWORD PGHOST PGUSER=postgres PGDATABASE=cdc_export
PGPASSWORD=$(cat data/postgres.password) PGHOST=$(sed -n 5p data/postgres/postmaster.pid)
"$venv/bin/python" "$root/tests/guides.py" "$server"
psql -q -f "$root/seeds/awkward.sql"
"$venv/bin/python" "$root/tests/formats.py" "$server"
