#!/usr/bin/env bash
# A full export to a bucket of an emulator of S3, beside `psql \copy` to a file, and beside `\copy` into boto3's multipart upload to the
# same bucket: wall time, the service's peak memory over idle. And what the emulator itself takes for the file by one PUT, which is the
# least that anybody needs. Medians of the rounds.
#
#   cargo build --release && benches/buckets.sh [ROWS [ROUNDS]]
#
# Needs Linux and what tests/venv.sh does; fetches packages from PyPI. Uses a scratch folder and the emulator's memory for everything.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
rows=${1:-1000000} rounds=${2:-5}
here=$(cd "$(dirname "$0")/.." && pwd)
emulator_python=$("$here/tests/venv.sh" buckets) loader_python=$("$here/tests/venv.sh" boto3)

log=$(mktemp)
env -i PATH="$PATH" HOME="$HOME" SERVICES=s3 IOT_MTLS_ENABLED=0 DOCKER_HOST=unix:///none "${emulator_python%/*}/hypercorn" --workers 0 \
    --graceful-timeout 0 --bind 127.0.0.1:0 ministack.app:app </dev/null >"$log" 2>&1 &
emulator=$!
trap 'kill $emulator' EXIT
until endpoint=$(grep -om1 'http://127\.0\.0\.1:[1-9][0-9]*' "$log") && curl -s -o /dev/null "$endpoint/"; do
    kill -0 $emulator
    sleep 0.1
done
export AWS_ENDPOINT_URL=$endpoint AWS_ALLOW_HTTP=true AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test OUTPUT_URL=s3://bench/exports
curl -s -o /dev/null -X PUT "$endpoint/bench"

start_service "$rows"
trap 'kill $service; wait $service || true; kill $emulator; rm -rf "$dir" "$log"' EXIT
select="select $columns from users where not is_deleted"
# Parts of the service's own size, two at once, as the service sends them.
cat >upload.py <<'PYTHON'
import sys, boto3, boto3.s3.transfer
config = boto3.s3.transfer.TransferConfig(multipart_chunksize=8 << 20, multipart_threshold=8 << 20, max_concurrency=2)
boto3.client("s3").upload_fileobj(sys.stdin.buffer, "bench", "copy.csv", Config=config)
PYTHON
piped() { copy "$select" pstdout | "$loader_python" upload.py; }
# case_of NAME COMMAND…: appends wall seconds and the service's peak over idle in MB.
case_of() {
    local name=$1
    shift
    forget_peak $service
    measure "$@"
    awk -v w="$wall" -v i="$idle" -v p="$(memory VmHWM $service)" 'BEGIN {printf "%.3f %.1f\n", w / 1e6, (p - i) / 1024}' >>"case.$name"
}

machine "$rows"
idle=$(memory VmRSS $service)
for _ in $(seq "$rounds"); do
    case_of service_to_bucket export_and_wait full '{}'
    case_of 'copy_to_boto3' piped
    case_of copy_to_file copy "$select"
    # `measure` removes the file that it would send.
    copy "$select" kept.csv
    case_of one_PUT curl -s -f -o /dev/null -T kept.csv "$endpoint/bench/put.csv"
done
column() { cut -d' ' -f"$2" "case.$1" >column; median column; }
for name in service_to_bucket copy_to_boto3 copy_to_file one_PUT; do
    printf '%-20s %s s\n' "$name" "$(column "$name" 1)"
done
printf 'peak of the service over idle: %s MB\n' "$(column service_to_bucket 2)"
