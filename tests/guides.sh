#!/usr/bin/env bash
# Runs the commands of docs/guides/ against a real service, and compares the copies with the source.
#
# First `apply` and the Python package keep copies in another Postgres and in DuckDB. There are changes, hard deletes, a
# TRUNCATE, kills, lost answers, two runs at once, and exports that somebody made by hand or removed.
# Then the consumer of examples/ runs. tests/formats.py follows on the
# same service. Then a table of the user's own: its columns change, its triggers go, its exports have several files. A
# receiver of webhooks checks signatures with another library. At last docs/guides/manifests.md, block by block, on a
# folder and on an emulator of S3.
#
# `cargo build` comes first. Needs psql, curl, and what tests/venv.sh does.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
binary=${BINARY:-$root/target/debug/cdc-export}
python=$("$root/tests/venv.sh" guides)
emulator_python=$("$root/tests/venv.sh" buckets)

work=$(mktemp -d)
chmod 755 "$work"
cd "$work"
mkdir bin
ln -s "$binary" bin/cdc-export
export PATH="$work/bin:${python%/*}:$PATH"
start() {
    : >log
    env -i PATH="$PATH" HOME="$HOME" DATA_DIR="$work/data" OUTPUT_DIR="$work/output" PORT=0 SEED_ROWS=20000 LOG_FORMAT=json "$@" 2>log &
    service=$!
    until grep -q '"listening"' log; do kill -0 $service || { cat log; exit 1; }; sleep 0.1; done
    server=$(grep -o 'http://[0-9.:]*' log | tail -1)
    PGHOST=$(sed -n 5p data/postgres/postmaster.pid)
}
emulator=
trap 'kill $service $emulator || true; wait; rm -rf "$work"' EXIT
export PGHOST PGUSER=postgres PGDATABASE=cdc_export
start "$binary"
"$python" "$root/tests/guides.py" "$server"
"$python" "$root/tests/examples.py" "$server" "$(dirname "$(realpath "$binary")")/examples/consumer"
psql -q -f "$root/seeds/awkward.sql"
"$python" "$root/tests/formats.py" "$server"

# A table of one's own, beside a dataset file.
psql -q -c 'create table people ("re gion" text, id bigint, first text, last text, primary key ("re gion", id))' \
    -c "insert into people select 'r' || i % 3, i, 'F' || i, 'L' || i from generate_series(1, 50) as i"
printf '[[dataset]]\nname = "people"\ntable = "people"\n' >datasets.toml
psql -q -f "$root/tests/decimals.sql"
printf '[[dataset]]\nname = "amounts"\ntable = "amounts"\nupdated_at = "at"\ncapture = "timestamp"\nuuid = "text"\n' >>datasets.toml
# Its exports are larger than the smallest bound of a file, in Parquet too.
psql -q -c 'create table orders (id bigint primary key, total numeric(18, 2), note text not null)' \
    -c "insert into orders select i, i / 100.0, (select string_agg(encode(sha512((i || '-' || j)::bytea), 'base64'), '') from generate_series(1, 8) as j)
        from generate_series(1, 40000) as i"
printf '[[dataset]]\nname = "orders"\ntable = "orders"\nmax_file_bytes = 16777216\n' >>datasets.toml
# Somebody who is told of what is exported from here on, and listens at last.
hook_port=$("$python" -c 'import socket; free = socket.create_server(("127.0.0.1", 0)); print(free.getsockname()[1])')
secret=whsec_$(head -c 32 /dev/urandom | base64 -w0)
printf '[[webhook]]\nname = "here"\nurl = "http://127.0.0.1:%s/"\nsecret_env = "HOOK_SECRET"\nallow_http = true\nallow_private = true\n' \
    "$hook_port" >>datasets.toml
kill $service
wait $service || true
start DATASETS="$work/datasets.toml" MANIFESTS=on HOOK_SECRET="$secret" "$binary"
track=(env -i PATH="$PATH" HOME="$HOME" DATA_DIR="$work/data" DATASETS="$work/datasets.toml" "$binary" track people)
"${track[@]}"
"$python" "$root/tests/guides_columns.py" "$server" "${track[@]}"
"$python" "$root/tests/decimals.py" "$server"

env -i PATH="$PATH" HOME="$HOME" DATA_DIR="$work/data" DATASETS="$work/datasets.toml" "$binary" track orders
"$python" "$root/tests/guides_files.py" "$server"
"$python" "$root/tests/manifests.py" "$server" folder
"$python" "$root/tests/webhooks.py" "$server" "$hook_port" "$secret" people

# A bucket in the folder's place. The emulator is what tests/buckets.sh has, and as there it finds no engine of containers.
mkdir emulator
(cd emulator && exec env -i PATH="$PATH" HOME="$HOME" TMPDIR="$work/emulator" DOCKER_HOST="unix://$work/none" SERVICES=s3 IOT_MTLS_ENABLED=0 \
    "${emulator_python%/*}/hypercorn" --workers 0 --graceful-timeout 0 --bind 127.0.0.1:0 ministack.app:app) &>emulator.log &
emulator=$!
until store=$(grep -om1 'http://127\.0\.0\.1:[1-9][0-9]*' emulator.log); do
    kill -0 $emulator || { cat emulator.log; exit 1; }
    sleep 0.1
done
curl -sf --retry 20 --retry-connrefused --retry-delay 1 -o /dev/null -X PUT "$store/acme-exports" \
    -d '<CreateBucketConfiguration><LocationConstraint>eu-central-1</LocationConstraint></CreateBucketConfiguration>'
kill $service
wait $service || true
export AWS_ACCESS_KEY_ID=KEY AWS_SECRET_ACCESS_KEY=SECRET
start DATASETS="$work/datasets.toml" HOOK_SECRET="$secret" OUTPUT_DIR= OUTPUT_URL=s3://acme-exports/shop AWS_REGION=eu-central-1 AWS_ENDPOINT_URL="$store" \
    AWS_ALLOW_HTTP=true AWS_ACCESS_KEY_ID=KEY AWS_SECRET_ACCESS_KEY=SECRET "$binary"
"$python" "$root/tests/manifests.py" "$server" bucket "$store"
