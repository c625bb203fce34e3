#!/usr/bin/env bash
# What the API says of itself, held against it by schemathesis: calls made up from /openapi.json, good and bad ones, with a
# key. All of its checks, but for what schemathesis.toml says; a failure is a defect of the document or of the service. `cargo build` comes first.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${BINARY:-$PWD/target/debug/cdc-export}
work=$(mktemp -d)
chmod 755 "$work"
: >"$work/log"
service=
trap '[[ -z $service ]] || kill "$service"; wait; rm -rf "$work"' EXIT

die() { printf 'error: %s\n' "$*" >&2; tail -5 "$work/log" >&2; exit 1; }
member() { sed -n "s/.*\"$1\":\"\\{0,1\\}\\([^\",}]*\\).*/\\1/p"; }

python=$(tests/venv.sh schemathesis)

# Its own database and files; no limit that thousands of calls would meet.
settings=(env -i PATH="$PATH" HOME="$HOME" PORT=0 LOG_FORMAT=json AUTH=keys RATE_LIMIT=1000000/s SEED_ROWS=200 OUTPUT_DIR="$work/output")
(cd "$work" && exec "${settings[@]}" "$binary") 2>"$work/log" &
service=$!
for _ in {1..300}; do
    api=$(member address <"$work/log" | tail -1)
    [[ -z $api ]] || break
    kill -0 "$service" || die 'the service ended'
    sleep 0.1
done
[[ -n $api ]] || die 'the service does not listen'
key=$(cd "$work" && "${settings[@]}" "$binary" keys create --name schemathesis --scope admin 2>>"$work/log")

# What it may look at first: a consumer with an export and a watermark.
call() { curl -fsS -m 70 -H "Authorization: Bearer $key" -H 'X-Consumer-ID: search' "$@"; }
job=$(call -X POST "$api/exports/full" | member jobId)
call "$api/exports/$job?wait=60" >"$work/job"
[[ $(member status <"$work/job") == completed ]] || die "the first export: $(<"$work/job")"

rules=$PWD/tests/schemathesis
(cd "$work" && SCHEMATHESIS_HOOKS=hooks API_KEY="$key" PYTHONPATH="$rules" PYTHONDONTWRITEBYTECODE=1 \
    timeout 300 "${python%/*}/schemathesis" --config-file "$rules/schemathesis.toml" run "$api/openapi.json" "$@")

if grep -q 'panicked at\|"event":"request_failed"' "$work/log"; then
    die 'the service failed'
fi
kill -0 "$service" || die 'the service ended'
