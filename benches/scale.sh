#!/usr/bin/env bash
# The figures of a large company's load, one row for each limit.
#
#   cargo build --release && benches/scale.sh [ROW...]
#
# BINARY: another build, for a comparison. Needs Linux, psql and python3, for the fsyncs of row 9 also strace. Each row uses a scratch folder and a server of its own.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
statements=$(realpath "$(dirname "$0")/../crates/cdc-capture/src/purge")
benches=$(realpath "$(dirname "$0")")

# hold_open SQL: runs SQL in a transaction that stays open until the row ends.
hold_open() {
    exec {held}> >(psql -qAt -v ON_ERROR_STOP=1 >open)
    echo "begin; $1; select 'is open';" >&"$held"
    until grep -q 'is open' open; do kill -0 $service; pause 0.1; done
}
# copies_of_position CONSUMER N: N more positions, each with a snapshot of its own between its and now.
copies_of_position() {
    local columns
    columns=$(sql "select string_agg(attname, ', ') from pg_attribute
        where attrelid = 'watermarks'::regclass and attnum > 0 and attname not in ('id', 'consumer_id')")
    sql "do \$\$ begin for n in 1..$2 loop perform pg_current_xact_id(); commit; end loop; end \$\$"
    sql "insert into watermarks (consumer_id, $columns)
        select '$1-' || n, $columns from watermarks cross join generate_series(1, $2) n where consumer_id = '$1'"
    sql "update watermarks w set live_snapshot = own.snapshot, deletions_snapshot = own.snapshot
        from watermarks o
        cross join lateral (
          select format('%s:%s:%s', pg_snapshot_xmin(o.live_snapshot),
            pg_snapshot_xmax(o.live_snapshot)::text::bigint + split_part(o.consumer_id, '-', 2)::int,
            (select string_agg(xip::text, ',') from pg_snapshot_xip(o.live_snapshot) xip))::pg_snapshot as snapshot) own
        where o.id = w.id and w.consumer_id like '$1-%'"
}
# explained STATEMENT: its time and blocks; it is rolled back.
explained() {
    sql "begin; set local jit = off; set local enable_seqscan = off; set local enable_bitmapscan = off; explain (analyze, buffers, timing off, summary) $1; rollback" | awk '
        /Buffers:/ && !blocks {for (i = 1; i <= NF; i++) if ($i ~ /^(hit|read)=/) {sub(/.*=/, "", $i); blocks += $i}}
        /Execution Time:/ {time = $3}
        END {printf "%.1f ms, %d blocks\n", time, blocks}'
}
# explained_purge: a purge of 50,000 rows at most, in the way of the service.
explained_purge() { explained "$(sed 's/\$1/50000/' "$statements/purge.sql")"; }

# Positions that a backfill of another table takes (CHANGE_LOG_MAX_BYTES=4MiB), and a purge that leaves the rows of one.
row_1() (
    export CHANGE_LOG_MAX_BYTES=4MiB
    start_service 200000
    sql "create table quiet (id bigint primary key, name text); insert into quiet values (1, 'quiet')"
    printf '[[dataset]]\nname = "users"\ntable = "users"\n[[dataset]]\nname = "quiet"\ntable = "quiet"\n' >datasets.toml
    cli track quiet
    serve_once
    consumer=daily export_and_wait full '{"dataset": "quiet"}'
    consumer=nightly export_and_wait full '{"dataset": "users"}'
    sql "update watermarks set saved_at = saved_at - interval '2 hours', deletions_saved_at = deletions_saved_at - interval '2 hours'"
    sql "update quiet set name = 'changed'; update users set name = 'backfill'"
    until [[ $(sql 'select count(*) from watermarks where log_lost is not null') != 0 ]]; do pause 0.5; done
    echo "1: a backfill of 200,000 rows took the positions of: $(sql "select string_agg(consumer_id, ', ') from watermarks where log_lost is not null")"
    consumer=daily export_and_wait delta '{"dataset": "quiet"}'
    # Its position keeps the log.
    consumer=nightly export_and_wait full '{"dataset": "users"}'
    sql "update users set name = 'kept'"; sql 'vacuum analyze cdc_export.change_log'
    printf '1: a purge beside %s rows that it leaves: ' "$(sql 'select count(*) from cdc_export.change_log')"
    explained_purge
    end_second
)

# The purge of 50,000 rows that every position has seen, beside a transaction that stays open.
row_5() {
    local positions
    for positions in 100 1000 10000; do (
        start_service 55600
        hold_open "lock table cdc_export.locks in share update exclusive mode; update users set name = 'open' where id = 1"
        sql "update users set name = 'seen by all' where id between 2 and 50001"
        export_and_wait full
        copies_of_position bench $((positions - 1))
        sql 'analyze watermarks; analyze cdc_export.change_log'
        # The second run finds everything in memory.
        explained_purge >first
        printf '5: purge of 50,000 rows beside an open transaction, %s positions: ' "$positions"
        explained_purge
    ); done
}

# datasets_of N: the tables t1 to tN, and their blocks in datasets.toml.
datasets_of() {
    local n
    sql "do \$\$ begin for n in 1..$1 loop
        execute format('create table if not exists t%s (id bigint primary key, name text, amount numeric(12, 2),
            at timestamptz not null default now(), gone boolean)', n);
        execute format('create index if not exists t%s_at on t%1\$s (at)', n);
    end loop; end \$\$"
    for n in $(seq "$1"); do
        printf '[[dataset]]\nname = "t%s"\ntable = "t%s"\nupdated_at = "at"\n' "$n" "$n"
    done >datasets.toml
}
# cli ARGUMENTS…: a command, with these datasets.
cli() { DATASETS=datasets.toml "$binary" "$@" >/dev/null 2>errors || { cat errors >&2; return 1; }; }
seconds() {
    local began ended
    clock began; "$@"; clock ended
    awk -v us=$((ended - began)) 'BEGIN {printf "%.2f s", us / 1e6}'
}
# statements COMMAND…: how many there are, and their time in Postgres.
statements() {
    logged "$@"
    awk '
        /alter system|reload_conf/ {next}
        match($0, /duration: [0-9.]+ ms/) {time += substr($0, RSTART + 10) + 0}
        /duration: [0-9.]+ ms  (execute|statement)/ {count += 1}
        END {printf "%d statements of %d ms", count, time}' logged
}
# own_statements COMMAND…: how many there are without those that the service makes again and again, whatever it does.
periodic='store\.(due|destinations|ping|index_order|retention|datasets|jobs\.get|files\.unpublished)|store\.queue\.(beat|ended|fail_unknown)'
periodic+='|source\.(purge|capture|relations)|postgres\.session|connection\.set_up'
own_statements() {
    logged "$@"
    grep -E 'duration: [0-9.]+ ms  (execute|statement)' logged | grep -vE 'alter system|reload_conf' >all
    printf '%d statements, %d of them its own' "$(wc -l <all)" "$(grep -vcE -- "-- ($periodic)" all)"
}
# serve_once: a service with these datasets, until /health/ready is 200. Leaves it in $second, at $port.
serve_once() {
    : >second.log
    DATABASE_URL="postgres://postgres@localhost/cdc_export?host=$PGHOST" SEED_ROWS=0 DATASETS=datasets.toml PORT=0 LOG_FORMAT=json \
        "$binary" serve 2>second.log >/dev/null & second=$!
    until grep -q '"listening"' second.log; do kill -0 $second || exit; pause 0.02; done
    port=$(grep -o 'http://[0-9.:]*' second.log | tail -1 | cut -d: -f3)
    until http GET /health/ready && [[ $answer == 'HTTP/1.1 200'* ]]; do pause 0.02; done
}
end_second() { kill $second; wait $second || true; }
start_and_end() { serve_once; end_second; }
start_seconds() {
    seconds serve_once
    end_second
}

# `track`, a start and /datasets.
row_2() {
    local tables
    for tables in 10 100 300 1000; do (
        start_service 0
        datasets_of "$tables"
        printf '2: %s tables: track --all %s' "$tables" "$(seconds cli track --all)"
        printf ', one track %s, %s' "$(seconds cli track t1)" "$(statements cli track t1)"
        printf ', a start %s, %s' "$(start_seconds)" "$(statements start_and_end)"
        printf ', datasets check %s' "$(seconds cli datasets check)"
        serve_once
        http GET /datasets
        printf ', /datasets %s, %s\n' "$(seconds http GET /datasets)" "$(statements http GET /datasets)"
        end_second
    ); done
}

# far_service MILLISECONDS [NAME=VALUE...]: a second service, on an empty database of the first one's server, that many milliseconds
# away each way. Sets $far, $port, $proxy and the two ends of its pipe.
far_service() {
    local milliseconds=$1; shift
    createdb far
    coproc PROXY { exec python3 "$benches/far_postgres.py" "$PGHOST/.s.PGSQL.5432" "$milliseconds" "$dir/proxy.port"; }
    proxy=$PROXY_PID
    until [[ -s proxy.port ]]; do kill -0 "$proxy"; pause 0.1; done
    mkdir -p far
    (cd far && exec env "$@" DATABASE_URL="postgres://postgres@127.0.0.1:$(cat ../proxy.port)/far?sslmode=disable" \
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
    local times=${TIMES:-50} n line was
    for away in 0 2; do (
        start_service 0
        far_service "$away"
        export_and_wait full >/dev/null
        for n in $(seq 10); do export_and_wait delta; done
        : >took
        trips >/dev/null
        for n in $(seq "$times"); do
            timed took export_and_wait delta
        done
        n=$(trips)
        echo "9: an empty delta $away ms away: $(median took) ms, $(each "$n" "$times") round trips with the client's GET and the idle ones"
        if ((away == 0)); then
            log_statements 0
            new_sessions
            line=$(lines_of_log) was=$(synced)
            for n in $(seq "$times"); do export_and_wait delta; done
            pause 0.5
            echo "9: $(each "$(statements_since "$line")" "$times") statements, $(each $(($(synced) - was)) "$times") syncs of WAL an export"
            if command -v strace >/dev/null; then
                timeout -s INT 20 strace -f -qq -e trace=fsync,fdatasync -p "$far" -o syncs & was=$!
                pause 1
                for n in $(seq "$times"); do export_and_wait delta; done
                kill -INT $was; wait $was || true
                echo "9: $(each "$(grep -c 'sync(' syncs)" "$times") fsyncs of the service an export"
            fi
        fi
        end_far_service
    ); done
    echo "9: round trips of one export alone: cargo test --features full --test suite -- trips::"
}

# An idle process: statements a second, connections, and the memory of the largest backend after a hundred exports.
row_10() {
    local line n workers pids
    for workers in 2 16; do (
        start_service 0
        far_service 0 WORKERS=$workers
        export_and_wait full
        log_statements 0; new_sessions
        pause 70
        line=$(lines_of_log)
        pause 20
        echo "10: idle, WORKERS=$workers: $(each "$(statements_since "$line")" 20) statements/s, $(sql "select count(*) from pg_stat_activity where datname = 'far'") connections"
        for n in $(seq 100); do export_and_wait delta; done
        pids=$(sql "select pid from pg_stat_activity where datname = 'far'")
        echo "10: after 100 deltas: $(for n in $pids; do memory RssAnon "$n"; done | sort -n | tail -1) kB of its own in the largest of $(wc -w <<<"$pids") backends"
        end_far_service
    ); done
}

# filled_datasets TABLES ROWS: the tables with so many rows each.
filled_datasets() {
    datasets_of "$1"
    sql "do \$\$ begin for n in 1..$1 loop
        execute format('insert into t%s (id, name, amount, at) select i, md5(i::text), i %% 1000, now() from generate_series(1, $2) i', n);
    end loop; end \$\$"
    sql 'analyze'
    cli track --all
}

# A job of deltas of 1,000 tables, of which 10 changed; and one of 100 tables with a million rows in all beside one table of a million.
row_16() {
    local n
    (
        start_service 0
        filled_datasets 1000 100
        serve_once
        printf '16: 1,000 tables of 100 rows: a job of full exports %s\n' "$(seconds export_and_wait full '{"datasets": "*"}')"
        for n in 1 2 3; do
            sql 'do $$ begin for n in 1..10 loop execute format($x$update t%s set name = $y$changed$y$ where id < 4$x$, n * 97); end loop; end $$'
            printf '16: a job of deltas with skipEmpty, 10 tables of 1,000 changed: %s' "$(seconds export_and_wait delta '{"datasets": "*", "skipEmpty": true}')"
            sql 'update t7 set name = $x$again$x$ where id = 1'
            printf ', with 1 changed %s' "$(own_statements export_and_wait delta '{"datasets": "*", "skipEmpty": true}')"
            printf ', with none %s\n' "$(own_statements export_and_wait delta '{"datasets": "*", "skipEmpty": true}')"
        done
        printf '16: most memory of the service, kB: %s\n' "$(memory VmHWM $second)"
        end_second
    )
    (
        start_service 0
        filled_datasets 100 10000
        sql "create table whole (like t1 including all); insert into whole select i, md5(i::text), i % 1000, now() from generate_series(1, 1000000) i"
        sql 'vacuum analyze whole'
        printf '[[dataset]]\nname = "whole"\ntable = "whole"\nupdated_at = "at"\n' >>datasets.toml
        cli track whole
        serve_once
        local names
        names=$(seq -f '"t%g"' -s, 100)
        for n in 1 2 3 4 5; do
            timed one export_and_wait full '{"dataset": "whole"}'
            timed many export_and_wait full "{\"datasets\": [$names]}"
        done
        ratios many one
        echo "16: a million rows: one table $(median one) ms, a job of 100 tables $(median many) ms, ratio $(median ratios); most memory, kB: $(memory VmHWM $second)"
        end_second
    )
}

for row in ${@:-1 2 5 9 10 16}; do "row_$row"; done
