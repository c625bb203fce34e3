#!/usr/bin/env bash
# Runs docs/guides/elsewhere.md, block by block, on exports of the table of tests/elsewhere.sql. tests/elsewhere.py compares the values.
#
#   tests/elsewhere.sh               all readers of the page
#   tests/elsewhere.sh Spark dlt     these
#
# Needs what tests/service.sh and tests/venv.sh do, and psql. Spark needs Java. A program that is missing is named, and its section skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(tests/venv.sh elsewhere)
. tests/service.sh
binary=$(realpath "$binary")

start_service SEED_ROWS=0
private
export PGHOST=$socket PGUSER=postgres PGDATABASE=cdc_export
psql -q -v ON_ERROR_STOP=1 -f tests/elsewhere.sql
texts=$'uuid = "text"\ntime = "text"'
lists=$texts$'\narrays = "list"\nunrepresentable = "null"'
printf '[[dataset]]\nname = "%s"\ntable = "orders"\n%s\n' orders '' orders-text "$texts" orders-lists "$lists" >"$work/datasets.toml"
printf '[[dataset]]\nname = "notes"\ntable = "notes"\ncapture = "none"\n' >>"$work/datasets.toml"
kill "$service"
wait "$service" || true
start_service DATASETS="$work/datasets.toml"
(cd "$work" && "${settings[@]}" "$binary" track orders)
mkdir "$work/bin"
ln -s "$binary" "$work/bin/cdc-export"
cd "$work"
PATH=$work/bin:$PATH "$python" "$OLDPWD/tests/elsewhere.py" "$api" "$@"
