#!/usr/bin/env bash
# What the service costs where there is much of something, a row for each question.
#
#   cargo build --release && benches/scale.sh [ROW...]
#
# BINARY: another build, for a comparison. Uses a scratch folder for everything.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
here=$(cd "$(dirname "$0")" && pwd)

# far_service MILLISECONDS [NAME=VALUE...]: a second service, on an empty database of the first one's server, that many milliseconds
# away each way. Sets $far, $port, $proxy and the two ends of its pipe.
far_service() {
    local milliseconds=$1; shift
    createdb far
    coproc PROXY { exec python3 "$here/far_postgres.py" "$PGHOST/.s.PGSQL.5432" "$milliseconds" "$dir/proxy.port"; }
    proxy=$PROXY_PID
    until [[ -s proxy.port ]]; do kill -0 "$proxy"; pause 0.1; done
    mkdir -p far
    (cd far && exec env "$@" DATABASE_URL="postgres://postgres:$PGPASSWORD@127.0.0.1:$(cat ../proxy.port)/far?sslmode=disable" \
        OUTPUT_DIR="$dir/far/output" SEED_ROWS=1000 PORT=0 LOG_FORMAT=json "$binary" 2>log) & far=$!
    until grep -qs '"listening"' far/log; do kill -0 "$far"; pause 0.1; done
    port=$(grep -o 'http://[0-9.:]*' far/log | tail -1 | cut -d: -f3)
}
end_far_service() {
    kill "$far"; wait "$far" || true
    kill "$proxy"; wait "$proxy" 2>/dev/null || true
    rm -rf far proxy.port
    dropdb --force far
}
# trips: the round trips since the last call.
trips() { echo >&"${PROXY[1]}"; local n; read -r n <&"${PROXY[0]}"; echo "$n"; }
# The statements of the database `far` in the server's log since the line $1, without those of psql.
statements_since() { tail -n +"$1" data/postgres.log | grep -cE 'duration: .* (statement|execute [^:]*): ' || true; }
log_statements() { sql "alter database far set log_min_duration_statement = $1"; }
# Ends the sessions of the service, since a session reads its settings at its start. The first calls after that may fail.
new_sessions() {
    local n
    sql "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'far'" >/dev/null
    for n in $(seq 10); do pause 0.5; export_and_wait delta 2>/dev/null || true; done
}
lines_of_log() { wc -l <data/postgres.log; }
# Commits of the server that waited for its disk.
synced() {
    local version; version=$(sql 'show server_version_num')
    if ((version >= 180000)); then sql "select sum(fsyncs) from pg_stat_io where object = 'wal'"; else sql 'select wal_sync from pg_stat_wal'; fi
}

# One empty delta: round trips, statements, commits with a sync and fsyncs of the service, and how long it takes 0 and 2 ms away.
row_9() {
    local times=${TIMES:-50} n began ended line was
    for away in 0 2; do
        start_row
        far_service "$away"
        export_and_wait full >/dev/null
        for n in $(seq 10); do export_and_wait delta; done
        : >took
        trips >/dev/null
        for n in $(seq "$times"); do
            clock began; export_and_wait delta; clock ended
            milliseconds $((ended - began)) >>took
        done
        n=$(trips)
        echo "9: an empty delta $away ms away: $(median took) ms, $(awk -v n="$n" -v of="$times" 'BEGIN {printf "%.1f", n / of}') round trips with the client's GET and the idle ones"
        if ((away == 0)); then
            log_statements 0
            new_sessions
            line=$(lines_of_log) was=$(synced)
            for n in $(seq "$times"); do export_and_wait delta; done
            pause 0.5
            echo "9: $(awk -v n="$(statements_since "$line")" -v of="$times" 'BEGIN {printf "%.1f", n / of}') statements, $(awk -v n=$(($(synced) - was)) -v of="$times" 'BEGIN {printf "%.1f", n / of}') syncs of WAL an export"
            if command -v strace >/dev/null; then
                timeout -s INT 20 strace -f -qq -e trace=fsync,fdatasync -p "$far" -o syncs & was=$!
                pause 1
                for n in $(seq "$times"); do export_and_wait delta; done
                kill -INT $was; wait $was || true
                echo "9: $(awk -v n="$(grep -c 'sync(' syncs)" -v of="$times" 'BEGIN {printf "%.1f", n / of}') fsyncs of the service an export"
            fi
        fi
        end_far_service
    done
    echo "9: round trips of one export alone: cargo test --features full --test suite -- trips::"
}

# An idle process: statements a second, connections, and the memory of the largest backend after a hundred exports.
row_10() {
    local line n workers pids
    for workers in 2 16; do
        start_row
        far_service 0 WORKERS=$workers
        export_and_wait full
        log_statements 0; new_sessions
        pause 70
        line=$(lines_of_log)
        pause 20
        echo "10: idle, WORKERS=$workers: $(awk -v n="$(statements_since "$line")" 'BEGIN {printf "%.1f", n / 20}') statements/s, $(sql "select count(*) from pg_stat_activity where datname = 'far'") connections"
        for n in $(seq 100); do export_and_wait delta; done
        pids=$(sql "select pid from pg_stat_activity where datname = 'far'")
        echo "10: after 100 deltas: $(for n in $pids; do memory RssAnon "$n"; done | sort -n | tail -1) kB of its own in the largest of $(wc -w <<<"$pids") backends"
        end_far_service
    done
}

start_row() { [[ -n ${service-} ]] || start_service 0; }
rows=("$@")
((${#rows[@]})) || rows=(9 10)
for row in "${rows[@]}"; do "row_$row"; done
