#!/usr/bin/env bash
# The service and its peers against `psql \copy` of the same rows, all in one run: each round has one `\copy` and one turn of
# everybody else. A full export to CSV, plain and packed; then, without the peers, incrementals, deltas of all rows, and the
# API beside two exports.
#
#   cargo build --release && benches/peers.sh [ROWS [ROUNDS]]
#
# A ratio is the wall time of `\copy` / that of the case in the same round, so higher is faster. CPU is that of the client (for
# the service: itself) and of the server; the peak is the client's resident memory, the service's over idle. Fetches what
# benches/peers/ names by pip and npm into a scratch folder. Needs zstd, python3 with venv, node and npm.
#
# Not among them: DuckDB, whose postgres extension is downloaded from a host of its own at run time.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
rows=${1:-1000000} rounds=${2:-5}
peers=$(cd "$(dirname "$0")/peers" && pwd) latency=$(cd "$(dirname "$0")" && pwd)/api_latency.py
start_service "$rows"
select="select $columns from users where not is_deleted"

# Beside the programs, which is where node looks.
cp -r "$peers" peers
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check -r peers/requirements.txt
npm install --prefix peers --silent --no-fund --no-audit --no-package-lock

# watch PROCESS: writes the most memory it had, in MB, into `peak`. Looks ten times a second, which costs next to nothing.
watch() {
    local status=''
    while [[ $(<"/proc/$1/status") =~ VmHWM:[[:space:]]*([0-9]+) ]]; do
        status=${BASH_REMATCH[1]}
        echo "$((status / 1024))" >peak
        pause 0.1
    done 2>/dev/null
}
# A peer in its own process, watched.
peer() {
    "$@" "$select" copy.csv & local process=$!
    watch $process & watcher=$!
    wait $process
}
plain() {
    psql -q -c "\\copy ($select) to copy.csv csv header" & local process=$!
    watch $process & watcher=$!
    wait $process
}
packed() { copy "$select" pstdout | zstd -q -1 >copy.csv; }
# export_full BODY: the service's, as copy.csv too.
export_full() { forget_peak $service; export_and_wait full "$1"; }
# case_of NAME COMMAND…: one turn. The first case of a round is its measure.
case_of() {
    local name=$1
    shift
    rm -f copy.csv peak
    watcher=
    measure "$@"
    [ -z "$watcher" ] || wait "$watcher" || true
    [ "$name" != '\copy' ] || round_wall=$wall
    if [ "$1" = export_full ]; then
        echo $((($(memory VmHWM $service) - idle) / 1024)) >peak
        [ "$(of_answer rowsExported)" = "$expected" ]
    elif [ "$1" != packed ]; then
        [ "$(wc -l <copy.csv)" = $((expected + 1)) ]
    fi
    echo "$name" >>names
    awk -v c="$round_wall" -v w="$wall" 'BEGIN {printf "%.2f\n", c / w}' >>"ratio.$name"
    awk -v w="$wall" 'BEGIN {printf "%.2f\n", w / 1e6}' >>"wall.$name"
    awk -v u="$used" 'BEGIN {printf "%.2f\n", u / 1e6}' >>"cpu.$name"
    cat peak >>"peak.$name" 2>/dev/null || echo - >>"peak.$name"
}

sql 'vacuum analyze users'; sql checkpoint
expected=$(sql 'select count(*) from users where not is_deleted')
machine "$rows"
printf '%s, node %s, Python %s\n' "$(psql --version)" "$(node --version)" "$(python3 --version | cut -d' ' -f2)"
venv/bin/pip list --format freeze --disable-pip-version-check | grep -iE 'sqlalchemy|adbc-driver-p|connectorx|psycopg=|pyarrow' | paste -sd' '
(cd peers && npm ls --depth 0 --parseable=false 2>/dev/null | sed -n 's/^[^ ]* \(.*@.*\)/\1/p' | paste -sd' ')

idle=$(memory VmRSS $service)
for _ in $(seq "$rounds"); do
    case_of '\copy' plain
    case_of 'cdc-export' export_full '{}'
    case_of '\copy to zstd -1' packed
    case_of 'cdc-export, zstd' export_full '{"compression":"zstd"}'
    case_of 'psycopg COPY' peer venv/bin/python peers/psycopg_copy.py
    case_of 'adbc, pyarrow csv' peer venv/bin/python peers/adbc_arrow.py
    case_of 'connectorx, pyarrow csv' peer venv/bin/python peers/connectorx_arrow.py
    case_of 'pg-query-stream' peer node peers/query_stream.js
    case_of 'SQLAlchemy core, csv' peer venv/bin/python peers/sqlalchemy_core.py
done
printf '\n%-24s %-22s %-22s %-22s %s\n' case ratio 'wall s' 'CPU s' 'peak MB'
awk '!seen[$0]++' names | while IFS= read -r name; do
    printf '%-24s %-22s %-22s %-22s %s\n' "$name" "$(median "ratio.$name")" "$(median "wall.$name")" "$(median "cpu.$name")" \
        "$(median "peak.$name" | cut -d' ' -f1)"
done
printf 'load %s\n\n' "$(load)"

incrementals 21
deltas 3
python3 "$latency" "$port" 10
printf 'load %s\n' "$(load)"
