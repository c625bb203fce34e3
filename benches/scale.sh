#!/usr/bin/env bash
# The figures of a large company's load, one row for each limit.
#
#   cargo build --release && benches/scale.sh [ROW...]
#
# BINARY: another build, for a comparison. Needs Linux and psql. Each row uses a scratch folder and a server of its own.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
statements=$(realpath "$(dirname "$0")/../src")

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
    sql "begin; explain (analyze, buffers, timing off, summary) $1; rollback" | awk '
        /Buffers:/ && !blocks {for (i = 1; i <= NF; i++) if ($i ~ /^(hit|read)=/) {sub(/.*=/, "", $i); blocks += $i}}
        /Execution Time:/ {time = $3}
        END {printf "%.1f ms, %d blocks\n", time, blocks}'
}

# The purge of 50,000 rows that every position has seen, beside a transaction that stays open.
row_5() {
    local positions
    for positions in 100 1000 10000; do (
        start_service 55600
        hold_open "select from cdc_export.locks where name = 'purge' for update; update users set name = 'open' where id = 1"
        sql "update users set name = 'seen by all' where id between 2 and 50001"
        export_and_wait full
        copies_of_position bench $((positions - 1))
        sql 'analyze watermarks; analyze cdc_export.change_log'
        # The second run finds everything in memory.
        explained "$(sed 's/\$1/50000/' "$statements/source/purge/purge.sql")" >first
        printf '5: purge of 50,000 rows beside an open transaction, %s positions: ' "$positions"
        explained "$(sed 's/\$1/50000/' "$statements/source/purge/purge.sql")"
    ); done
}

# An empty delta, and the same beside a transaction that has been open for 400,000 changes, all of which the position has seen.
row_6() (
    empty_deltas() {
        for _ in $(seq 5); do export_and_wait delta; done
        for _ in $(seq 21); do
            clock began; export_and_wait delta; clock ended
            milliseconds $((ended - began)) >>"$1"
        done
    }
    start_service 111112
    export_and_wait full; empty_deltas quiet
    # Its position keeps the log.
    consumer=behind export_and_wait full
    hold_open "update users set name = 'open' where id = 1"
    for n in 1 2 3 4; do sql "update users set name = 'seen $n' where not is_deleted and id > 1 and id <= 111112"; done
    export_and_wait full
    sql 'vacuum analyze users'; sql 'analyze cdc_export.change_log'
    empty_deltas beside
    echo "6: an empty delta, ms: $(median quiet), beside a transaction open for $(sql 'select count(*) from cdc_export.change_log') changes: $(median beside)"
)


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
# seconds COMMAND…
seconds() {
    local began ended
    clock began; "$@"; clock ended
    awk -v us=$((ended - began)) 'BEGIN {printf "%.2f s", us / 1e6}'
}
# statements COMMAND…: how many there are, and their time in Postgres.
statements() {
    local from
    from=$(stat -c %s data/postgres.log)
    sql 'alter system set log_min_duration_statement = 0'; sql 'select pg_reload_conf()' >/dev/null
    pause 0.2
    "$@"
    sql 'alter system reset log_min_duration_statement'; sql 'select pg_reload_conf()' >/dev/null
    tail -c +$((from + 1)) data/postgres.log | awk '
        match($0, /duration: [0-9.]+ ms/) && !/alter system|reload_conf/ {time += substr($0, RSTART + 10) + 0}
        /duration: [0-9.]+ ms  (execute|statement)/ && !/alter system|reload_conf/ {count += 1}
        END {printf "%d statements of %d ms", count, time}'
}
# serve_once: a service with these datasets, until /health/ready is 200. Leaves it in $second, at $port.
serve_once() {
    : >second.log
    SEED_ROWS=0 DATASETS=datasets.toml PORT=0 LOG_FORMAT=json "$binary" serve 2>second.log >/dev/null & second=$!
    until grep -q '"listening"' second.log; do kill -0 $second; pause 0.02; done
    port=$(grep -o 'http://[0-9.:]*' second.log | tail -1 | cut -d: -f3)
    until http GET /health/ready && [[ $answer == 'HTTP/1.1 200'* ]]; do pause 0.02; done
}
end_second() { kill $second; wait $second || true; }
start_and_end() { serve_once; end_second; }
# start_seconds: from its begin until it is ready.
start_seconds() {
    seconds serve_once
    end_second
}

# `track` and a start.
row_2() {
    local tables
    for tables in 10 100 300 1000; do (
        start_service 0
        datasets_of "$tables"
        printf '2: %s tables: track --all %s' "$tables" "$(seconds cli track --all)"
        printf ', one track %s, %s' "$(seconds cli track t1)" "$(statements cli track t1)"
        printf ', a start %s, %s' "$(start_seconds)" "$(statements start_and_end)"
        printf ', datasets check %s\n' "$(seconds cli datasets check)"
    ); done
}

# /datasets.
row_7() {
    local tables
    for tables in 10 100 300 1000; do (
        start_service 0
        datasets_of "$tables"
        cli track --all
        serve_once
        http GET /datasets
        printf '7: %s tables: /datasets %s, %s\n' "$tables" "$(seconds http GET /datasets)" "$(statements http GET /datasets)"
        end_second
    ); done
}

for row in ${@:-2 5 6 7}; do "row_$row"; done
