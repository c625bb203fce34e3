#!/usr/bin/env bash
# A full export in each format and compression, in turn, beside `psql \copy` plain and into packers: wall time, the service's CPU
# time, its peak memory over idle, and the file's size. Medians of the rounds.
#
#   cargo build --release && benches/formats.sh [ROWS [ROUNDS]]
#
# Needs Linux, gzip and zstd. Uses a scratch folder for everything.
set -euo pipefail
rows=${1:-1000000} rounds=${2:-5}
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
# Of the service, in hundredths of a second.
cpu() { awk '{print $14 + $15}' /proc/$service/stat; }
memory() { awk -v what="$1:" '$1 == what {print $2}' /proc/$service/status; }
# Of the numbers in a column of a file.
median() { awk -v column="$2" '{print $column}' "$1" | sort -n | sed -n "$(((rounds + 1) / 2))p"; }

copy() { "${db[@]}" -c "\\copy ($select) to ${1:-copy.csv} csv header"; }
export_full() {
    local job answer
    job=$(curl -fsS -H 'Content-Type: application/json' -H "X-Consumer-ID: $1" -d "$2" "$url/exports/full" | grep -o '"jobId":"[^"]*' | cut -d'"' -f4)
    answer=$(curl -fsS "$url/exports/$job?wait=60")
    [[ $answer == *'"status":"completed"'* ]] || { echo "$answer" >&2; return 1; }
    stat -c %s "output/$(grep -o '"outputFilename":"[^"]*' <<<"$answer" | cut -d'"' -f4)"
}
# NAME COMMAND…: appends wall seconds, the service's CPU seconds, its peak over idle in MB, and the file's MB.
measure() {
    local name=$1 a b cpu size
    shift
    # The peak begins anew.
    echo 5 >/proc/$service/clear_refs
    cpu=$(cpu) a=$(now)
    size=$("$@")
    b=$(now)
    awk -v a="$a" -v b="$b" -v c="$cpu" -v d="$(cpu)" -v i="$idle" -v p="$(memory VmHWM)" -v s="$size" \
        'BEGIN {printf "%.3f %.2f %.1f %.1f\n", b - a, (d - c) / 100, (p - i) / 1024, s / 1e6}' >>"case.$name"
}
plain() { copy && stat -c %s copy.csv; }
piped() { copy pstdout | "$@" >copy.packed && stat -c %s copy.packed; }
service_case() { measure "service_$1" export_full "bench-$1" "$2"; }

printf '%s rows, %s cores, %s, load %s\n' "$rows" "$(nproc)" "$("${db[@]}" -Atc 'show server_version' | cut -d' ' -f1)" "$(cut -d' ' -f1 /proc/loadavg)"
idle=$(memory VmRSS)
for _ in $(seq "$rounds"); do
    measure copy plain
    measure 'copy_|_zstd_-1' piped zstd -q -1
    measure 'copy_|_gzip_-2' piped gzip -2
    service_case csv '{}'
    service_case csv.gz '{"compression":"gzip"}'
    service_case csv.zst '{"compression":"zstd"}'
    service_case ndjson '{"format":"ndjson"}'
    service_case ndjson.zst '{"format":"ndjson","compression":"zstd"}'
    service_case parquet '{"format":"parquet"}'
done
printf '%-22s %8s %12s %13s %8s\n' case 'wall s' 'service CPU' 'peak +MB' 'file MB'
for file in case.*; do
    printf '%-22s %8s %12s %13s %8s\n' "${file#case.}" "$(median "$file" 1)" "$(median "$file" 2)" "$(median "$file" 3)" "$(median "$file" 4)"
done
