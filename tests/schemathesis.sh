#!/usr/bin/env bash
# Compares the API with its own document by schemathesis: calls made up from /openapi.json, good and bad ones, with a
# key. All of its checks, but for what schemathesis.toml says; a failure is a defect of the document or of the service. `cargo build` comes first.
set -euo pipefail
cd "$(dirname "$0")/.."

. tests/service.sh
python=$(tests/venv.sh schemathesis)

# No limit that thousands of calls would meet.
start_service AUTH=keys RATE_LIMIT=1000000/s
key=$(cd "$work" && "${settings[@]}" "$binary" keys create --name schemathesis --scope admin 2>>"$work/log")

# Makes the first things to look at: a consumer with an export and a watermark.
job=$(call POST /exports/full | member jobId)
call GET "/exports/$job?wait=60" >"$work/job"
[[ $(member status <"$work/job") == completed ]] || die "the first export: $(<"$work/job")"

rules=$PWD/tests/schemathesis
(cd "$work" && SCHEMATHESIS_HOOKS=hooks API_KEY="$key" PYTHONPATH="$rules" PYTHONDONTWRITEBYTECODE=1 \
    timeout 300 "${python%/*}/schemathesis" --config-file "$rules/schemathesis.toml" run "$api/openapi.json" "$@")

if grep -q 'panicked at\|"event":"request_failed"' "$work/log"; then
    die 'the service failed'
fi
kill -0 "$service" || die 'the service ended'
