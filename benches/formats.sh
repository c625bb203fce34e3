#!/usr/bin/env bash
# A full export in each format and compression, in turn, beside `psql \copy` plain and into packers: wall time, the service's CPU
# time, its peak memory over idle, and the file's size. Medians of the rounds.
#
#   cargo build --release && benches/formats.sh [ROWS [ROUNDS]]
#
# Needs Linux, gzip and zstd. Uses a scratch folder for everything.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
rows=${1:-1000000} rounds=${2:-5}
start_service "$rows"
select="select $columns from users where not is_deleted"
column() { awk -v column="$2" '{print $column}' "$1" >column; median column | cut -d' ' -f1; }
size() { stat -c %s "$1"; }

plain() { copy "$select"; file=copy.csv; }
piped() { copy "$select" pstdout | "$@" >copy.packed; file=copy.packed; }
export_full() { export_and_wait full "$1"; file=output/$(of_answer outputFilename); }
# case_of NAME COMMAND…: appends wall seconds, the service's CPU seconds, its peak over idle in MB, and the file's MB.
case_of() {
    local name=$1 cpu
    shift
    consumer=bench-$name
    forget_peak $service
    cpu=$(cpu $service)
    measure "$@"
    awk -v w="$wall" -v c="$(($(cpu $service) - cpu))" -v i="$idle" -v p="$(memory VmHWM $service)" -v s="$(size "$file")" \
        'BEGIN {printf "%.3f %.2f %.1f %.1f\n", w / 1e6, c / 1e6, (p - i) / 1024, s / 1e6}' >>"case.$name"
}

machine "$rows"
idle=$(memory VmRSS $service)
for _ in $(seq "$rounds"); do
    case_of copy plain
    case_of 'copy_to_zstd_-1' piped zstd -q -1
    case_of 'copy_to_gzip_-2' piped gzip -2
    case_of service_csv export_full '{}'
    case_of service_csv.gz export_full '{"compression":"gzip"}'
    case_of service_csv.zst export_full '{"compression":"zstd"}'
    case_of service_ndjson export_full '{"format":"ndjson"}'
    case_of service_ndjson.zst export_full '{"format":"ndjson","compression":"zstd"}'
    case_of service_parquet export_full '{"format":"parquet"}'
    for codec in snappy lz4 none; do
        case_of service_parquet.$codec export_full '{"format":"parquet","compression":"'$codec'"}'
    done
done
printf '%-22s %8s %12s %13s %8s\n' case 'wall s' 'service CPU' 'peak +MB' 'file MB'
for file in case.*; do
    printf '%-22s %8s %12s %13s %8s\n' "${file#case.}" "$(column "$file" 1)" "$(column "$file" 2)" "$(column "$file" 3)" "$(column "$file" 4)"
done
