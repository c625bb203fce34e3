#!/usr/bin/env bash
# What docs/guides/ says, for real: its loaders keep tables in another Postgres, in DuckDB and in pandas equal to the source, through
# changes, hard deletes, a TRUNCATE, crashes, lost answers, two loaders at once and exports that somebody made by hand or took away; then a
# table of one's own, through changes of its columns, wrong keys and triggers that are gone, and one whose exports have several files. In between
# tests/formats.py, on the same service.
#
# `cargo build` comes first. Needs psql, and what tests/venv.sh does.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
binary=${BINARY:-$root/target/debug/cdc-export}
python=$("$root/tests/venv.sh" guides)

work=$(mktemp -d)
chmod 755 "$work"
cd "$work"
start() {
    : >log
    env -i PATH="$PATH" HOME="$HOME" DATA_DIR="$work/data" OUTPUT_DIR="$work/output" PORT=0 SEED_ROWS=20000 LOG_FORMAT=json "$@" 2>log &
    service=$!
    until grep -q '"listening"' log; do kill -0 $service || { cat log; exit 1; }; sleep 0.1; done
    server=$(grep -o 'http://[0-9.:]*' log | tail -1)
    PGPASSWORD=$(cat data/postgres.password) PGHOST=$(sed -n 5p data/postgres/postmaster.pid)
}
trap 'kill $service; wait $service || true; rm -rf "$work"' EXIT
export PGPASSWORD PGHOST PGUSER=postgres PGDATABASE=cdc_export
start "$binary"
"$python" "$root/tests/guides.py" "$server"
psql -q -f "$root/seeds/awkward.sql"
"$python" "$root/tests/formats.py" "$server"

# A table of one's own, beside a dataset file.
psql -q -c 'create table people (region text, id bigint, first text, last text, primary key (region, id))' \
    -c "insert into people select 'r' || i % 3, i, 'F' || i, 'L' || i from generate_series(1, 50) as i"
printf '[[dataset]]\nname = "people"\ntable = "people"\n' >datasets.toml
psql -q -f "$root/tests/decimals.sql"
printf '[[dataset]]\nname = "amounts"\ntable = "amounts"\nupdated_at = "at"\ncapture = "timestamp"\nnumeric = "decimal"\nuuid = "text"\n' >>datasets.toml
# Its exports are larger than the smallest bound of a file, in Parquet too.
psql -q -c 'create table orders (id bigint primary key, total numeric(18, 2), note text not null)' \
    -c "insert into orders select i, i / 100.0, (select string_agg(encode(sha512((i || '-' || j)::bytea), 'base64'), '') from generate_series(1, 8) as j)
        from generate_series(1, 40000) as i"
printf '[[dataset]]\nname = "orders"\ntable = "orders"\nnumeric = "decimal"\nmax_file_bytes = 16777216\n' >>datasets.toml
kill $service
wait $service || true
start DATASETS="$work/datasets.toml" "$binary"
track=(env -i PATH="$PATH" HOME="$HOME" DATA_DIR="$work/data" DATASETS="$work/datasets.toml" "$binary" track people)
"${track[@]}"
"$python" "$root/tests/guides_columns.py" "$server" "${track[@]}"
"$python" "$root/tests/decimals.py" "$server"

env -i PATH="$PATH" HOME="$HOME" DATA_DIR="$work/data" DATASETS="$work/datasets.toml" "$binary" track orders
"$python" "$root/tests/guides_files.py" "$server"
