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

for row in ${@:-5 6}; do "row_$row"; done
