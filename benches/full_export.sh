#!/usr/bin/env bash
# A full export by the service against `psql \copy` of the same rows, in turn: the ratio of each round and the median.
#
#   cargo build --release && benches/full_export.sh [ROWS [ROUNDS]]
#
# Both end with a file; the service's also with its queue, sha256 and fsync. Uses a scratch folder for everything.
set -euo pipefail
rows=${1:-1000000} rounds=${2:-7}
binary=$(cd "$(dirname "$0")/.." && pwd)/target/release/cdc-export
dir=$(mktemp -d) && chmod 755 "$dir" && cd "$dir"
SEED_ROWS=$rows PORT=0 LOG_FORMAT=json "$binary" 2>log & service=$!
trap 'kill $service; wait $service || true; rm -rf "$dir"' EXIT
until grep -q '"listening"' log; do kill -0 $service; sleep 0.1; done
url=$(grep -o 'http://[0-9.:]*' log | tail -1)
PGPASSWORD=$(cat data/postgres.password) && export PGPASSWORD
db=(psql -q -h "$(sed -n 5p data/postgres/postmaster.pid)" -U postgres cdc_export)
select='select id, name, email, created_at, updated_at, is_deleted from users where not is_deleted'
now() { date +%s.%N; }
peak() { awk '/VmHWM/ {print $2}' /proc/$service/status; }

copy() { "${db[@]}" -c "\\copy ($select) to copy.csv csv header"; }
export_full() {
    local job
    job=$(curl -fsS -X POST -H "X-Consumer-ID: bench-$1" "$url/exports/full" | grep -o '"jobId":"[^"]*' | cut -d'"' -f4)
    until curl -fsS "$url/exports/$job" | grep -q '"status":"completed"'; do sleep 0.005; done
}

copy
idle=$(peak)
for round in $(seq "$rounds"); do
    a=$(now); copy; b=$(now); export_full "$round"; c=$(now)
    awk -v a="$a" -v b="$b" -v c="$c" 'BEGIN {printf "copy %.3f s  service %.3f s  ratio %.2f\n", b - a, c - b, (b - a) / (c - b)}'
done | tee rounds
printf 'median ratio %s  (%s rows, %s bytes, %s cores, %s)\n' "$(awk '{print $NF}' rounds | sort -n | sed -n "$(((rounds + 1) / 2))p")" \
    "$rows" "$(stat -c %s output/full_bench-1_*.csv)" "$(nproc)" "$("${db[@]}" -Atc 'show server_version' | cut -d' ' -f1)"
printf 'peak memory of the service: %s kB, idle %s kB\n' "$(peak)" "$idle"
