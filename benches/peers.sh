#!/usr/bin/env bash
# The service and its peers against `psql \copy` of the same rows, all in one run: each round has one `\copy` and one turn of
# everybody else. A full export to CSV, plain and packed, and to Parquet; then the harm that each does to the source; then,
# without the peers, incrementals, deltas of all rows, and the API beside two exports.
#
#   cargo build --release && benches/peers.sh [ROWS [ROUNDS]]
#
# A ratio is the wall time of `\copy` / that of the case in the same round, so higher is faster. CPU is that of the client (for
# the service: itself) and of the server; the peak is the client's resident memory, the service's over idle. Harm is measured
# in rounds of its own: how long reads of one row by its key take beside it, 200 a second, and the longest statement and the
# oldest snapshot that are seen. Fetches what benches/peers/ names by pip into a scratch folder. Needs zstd, pgbench and python3
# with venv.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
rows=${1:-1000000} rounds=${2:-5}
peers=$(cd "$(dirname "$0")/peers" && pwd) latency=$(cd "$(dirname "$0")" && pwd)/api_latency.py
start_service "$rows"
select="select $columns from users where not is_deleted"

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check -r "$peers/requirements.txt"

# watch PROCESS: writes the most memory it had, in MB, into `peak`. Looks ten times a second, which costs next to nothing.
watch() {
    local status=''
    while [[ $(<"/proc/$1/status") =~ VmHWM:[[:space:]]*([0-9]+) ]]; do
        status=${BASH_REMATCH[1]}
        echo "$((status / 1024))" >peak
        pause 0.1
    done 2>/dev/null
}
# watched COMMAND…: runs it in a process of its own.
watched() {
    "$@" & local process=$!
    watch $process & watcher=$!
    wait $process
}
# peer FILE PEER
peer() { watched venv/bin/python "$peers/peer.py" "$2" "$select" "$1"; }
plain() { watched psql -q -c "\\copy ($select) to copy.csv csv header"; }
packed() { copy "$select" pstdout | zstd -q -1 >copy.csv; }
# export_full BODY: the service's.
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
    elif [ -e copy.parquet ]; then
        [ "$(venv/bin/python -c 'import pyarrow.parquet as p; print(p.read_metadata("copy.parquet").num_rows)')" = "$expected" ]
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
printf '%s, %s\n' "$(psql --version)" "$(python3 --version)"
venv/bin/pip list --format freeze --disable-pip-version-check | grep -iE 'sqlalchemy|adbc-driver-p|chdb=|duckdb=|psycopg=|pyarrow' | paste -sd' '

idle=$(memory VmRSS $service)
# all_cases DO: calls DO NAME COMMAND… for each.
all_cases() {
    "$1" '\copy' plain
    "$1" 'cdc-export' export_full '{}'
    "$1" '\copy to zstd -1' packed
    "$1" 'cdc-export, zstd' export_full '{"compression":"zstd"}'
    "$1" 'cdc-export, parquet' export_full '{"format":"parquet"}'
    "$1" 'DuckDB, csv' peer copy.csv duckdb
    "$1" 'DuckDB, parquet' peer copy.parquet duckdb
    "$1" 'chdb, csv' peer copy.csv chdb
    "$1" 'chdb, parquet' peer copy.parquet chdb
    "$1" 'psycopg COPY' peer copy.csv psycopg
    "$1" 'adbc, pyarrow csv' peer copy.csv adbc
    "$1" 'SQLAlchemy core, csv' peer copy.csv sqlalchemy
}
for _ in $(seq "$rounds"); do all_cases case_of; done
printf '\n%-24s %-22s %-22s %-22s %s\n' case ratio 'wall s' 'CPU s' 'peak MB'
awk '!seen[$0]++' names | while IFS= read -r name; do
    printf '%-24s %-22s %-22s %-22s %s\n' "$name" "$(median "ratio.$name")" "$(median "wall.$name")" "$(median "cpu.$name")" \
        "$(median "peak.$name" | cut -d' ' -f1)"
done
printf 'load %s\n\n' "$(load)"

printf '\\set id random(1, %s)\nselect * from users where id = :id;\n' "$rows" >point.sql
# Longest statement and oldest snapshot of a case's sessions so far, in seconds.
seen="select coalesce(max(extract(epoch from clock_timestamp() - query_start)) filter (where state = 'active'), 0),
        coalesce(max(extract(epoch from clock_timestamp() - xact_start)) filter (where backend_xmin is not null), 0)
    from pg_stat_activity
    where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid() and application_name <> 'pgbench'"
# harm_of NAME COMMAND…: a turn beside reads of one row.
harm_of() {
    local name=$1 began ended reads samples
    shift
    remove_files
    rm -f points.*
    pgbench -n -R 200 -T 600 -f point.sql -l --log-prefix=points >/dev/null 2>&1 & reads=$!
    psql -qAt -F ' ' <<<"$seen \watch 0.02" >samples 2>/dev/null & samples=$!
    until [ -s samples ] && compgen -G 'points.*' >/dev/null; do pause 0.05; done
    watcher=
    clock began
    "$@"
    clock ended
    # It writes its log in pieces of less than that.
    pause 0.5
    kill $reads $samples
    wait $reads $samples || true
    [ -z "$watcher" ] || wait "$watcher" || true
    awk -v from="$began" -v to="$ended" '{at = $5 * 1e6 + $6; if (at >= from && at <= to) print $3 / 1000}' points.* >>"reads.$name"
    awk '{if ($1 > s) s = $1; if ($2 > x) x = $2} END {print s + 0 > "longest"; print x + 0 > "oldest"}' <(grep -E '^[0-9.]+ [0-9.]+$' samples)
    cat longest >>"longest.$name"; cat oldest >>"oldest.$name"
}
nothing() { pause 2; }
for _ in $(seq "$rounds"); do
    harm_of nothing nothing
    all_cases harm_of
done
printf '%-24s %-28s %-22s %s\n' harm 'reads, ms: median and p99' 'longest statement, s' 'oldest snapshot, s'
{ echo nothing; awk '!seen[$0]++' names; } | while IFS= read -r name; do
    printf '%-24s %-28s %-22s %s\n' "$name" "$(median "reads.$name" | cut -d' ' -f1) $(percentile99 "reads.$name")" \
        "$(median "longest.$name")" "$(median "oldest.$name")"
done
printf 'load %s\n\n' "$(load)"

incrementals 21
deltas 3
python3 "$latency" "$port" 10
printf 'load %s\n' "$(load)"
