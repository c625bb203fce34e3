#!/usr/bin/env bash
# The figures of a large company's load, one row for each limit.
#
#   cargo build --release && benches/scale.sh [ROW...]
#
# BINARY: another build, for a comparison. Needs Linux and psql. Each row uses a scratch folder and a server of its own.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

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

for row in "${@:-2 7}"; do for row in $row; do "row_$row"; done; done
