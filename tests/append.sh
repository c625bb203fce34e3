#!/usr/bin/env bash
# Runs the blocks of docs/guides/append.md in Postgres, DuckDB and ClickHouse. tests/append.py compares what they say with the table.
#
# Needs what tests/service.sh and tests/venv.sh do, and psql.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(tests/venv.sh elsewhere)
. tests/service.sh
python_script=$PWD/tests/append.py
printf '[[dataset]]\nname = "orders"\ntable = "orders"\n' >"$work/datasets.toml"

restart() {
    if [[ -n $service ]]; then
        kill "$service"
        wait "$service" || true
    fi
    "$@"
    start_service SEED_ROWS=0 MANIFESTS=on DATASETS="$work/datasets.toml"
    private
    export PGHOST=$socket PGUSER=postgres PGDATABASE=cdc_export
}
copy() { cp -a "$work/data/postgres" "$work/copy"; }
put_back() {
    rm -rf "$work/data/postgres"
    mv "$work/copy" "$work/data/postgres"
}
stage() { "$python" "$python_script" "$api" "$work" "$1"; }

# The table has to be there before the dataset is.
start_service SEED_ROWS=0
private
export PGHOST=$socket PGUSER=postgres PGDATABASE=cdc_export
psql -q -v ON_ERROR_STOP=1 -c 'create table orders (id bigint primary key, customer text, total numeric(18, 2))' \
    -c "insert into orders select i, 'customer ' || i, i / 4.0 from generate_series(1, 50) i"
restart true
(cd "$work" && "${settings[@]}" "$binary" track orders)
stage begin
restart copy
stage change
restart put_back
stage heal
stage empty
