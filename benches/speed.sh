#!/usr/bin/env bash
# The service against `psql \copy` of the same rows, in turn: full exports, incrementals of 10,000 changed rows, a delta of all
# rows. Prints each round's ratio (wall of \copy / wall of the service, so higher is faster) and the median.
#
#   cargo build --release && benches/speed.sh [ROWS [ROUNDS]]
#
# Wall time of the service is from POST to `completed`: queue, sha256 and fsync included. CPU is that of the client (psql, or the
# service) and of every process of the server. Each begins with the files of the last round removed. Uses a scratch folder and a server of its own; READERS and WORKERS are passed on.
# INCREMENTALS is how many there are of 10,000 changed rows (21), DELTAS of all rows (3).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
rows=${1:-1000000} rounds=${2:-7}
start_service "$rows"

sql 'vacuum analyze users'; sql checkpoint
machine "$rows"

idle=$(memory VmRSS $service)
copy "select $columns from users where not is_deleted"
export_and_wait full
for _ in $(seq "$rounds"); do compare full "select $columns from users where not is_deleted" full; done
summary full
echo "peak memory of the service: $(memory VmHWM $service) kB, idle $idle kB"

[[ ${INCREMENTALS:-21} == 0 ]] || incrementals "${INCREMENTALS:-21}"
[[ ${DELTAS:-3} == 0 ]] || deltas "${DELTAS:-3}"
echo "peak memory of the service: $(memory VmHWM $service) kB, idle $idle kB"
