#!/usr/bin/env bash
# `cdc-export apply` into another database of the same server: a first full export that is there, the same together with its export, and
# deltas of so many changed rows, beside `psql \copy` of the table piped into `\copy` and pg_dump piped into psql, with the primary key made
# afterwards, as apply does. Wall milliseconds: medians of the rounds, and the ratio of the piped `\copy` to each. Then the lag of
# `apply --every 1s` while 1,000 rows are changed each second: from a row's commit until the copy has it.
#
#   cargo build --release && benches/apply.sh [ROWS [CHANGES [ROUNDS]]]
#
# Needs Linux, psql and pg_dump. Uses a scratch folder for everything.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
rows=${1:-1000000} changes=${2:-10000} rounds=${3:-5}
start_service "$rows"
binary=$(readlink "/proc/$service/exe")
psql -q -c 'create database copy'
select="select $columns from users where not is_deleted"
table='(id bigint not null, name text not null, email text, created_at timestamptz, updated_at timestamptz, is_deleted boolean)'

into() { psql -qAt -v ON_ERROR_STOP=1 -d copy "$@"; }
empty() {
    into -c 'set client_min_messages = error' -c 'drop table if exists users' -c 'drop schema if exists cdc_apply cascade' -c checkpoint
    # Waits until the server has done what the last case left to do.
    pause 0.5
}
piped() {
    into -c "create table users $table"
    psql -q -c "\copy ($select) to pstdout csv header" | into -c '\copy users from pstdin csv header'
    into -c 'alter table users add primary key (id)'
}
dumped() { pg_dump --no-owner --no-privileges --exclude-schema cdc_export -t users | grep -v 'TRIGGER' | into -o /dev/null; }
command=("$binary" apply --to "postgres://$PGUSER@localhost/copy?host=$PGHOST" --server "http://127.0.0.1:$port" --dataset users --consumer)
# apply CONSUMER OPTION…
apply() { "${command[@]}" "$@" >/dev/null; }
whole() { export_and_wait full && apply "$consumer" --request none; }

machine "$rows"
for round in $(seq "$rounds"); do
    empty; timed case.copy_into_copy piped
    empty; timed case.pg_dump_into_psql dumped
    consumer=whole-$round
    empty; timed case.export_and_apply whole
    consumer=bench-$round
    export_and_wait full
    empty; timed case.apply_alone apply "$consumer" --request none
    first=$((round * changes % rows))
    sql "update users set name = 'changed $round', updated_at = now(), is_deleted = false where id > $first and id <= $((first + changes))"
    export_and_wait delta
    timed case.apply_delta apply "$consumer" --request none
    [[ $(into -c "select count(*) from users where name = 'changed $round'") == "$changes" ]]
done
for name in copy_into_copy pg_dump_into_psql export_and_apply apply_alone apply_delta; do
    printf '%-18s %s ms\n' "$name" "$(median "case.$name")"
    ratios case.copy_into_copy "case.$name"
    [[ $name == apply_delta || $name == copy_into_copy ]] || printf '%-18s %s of the piped \\copy\n' '' "$(median ratios)"
done

# The last round's table goes on.
"${command[@]}" "$consumer" --every 1s >/dev/null &
follower=$!
trap 'kill $follower $service; wait $follower $service || true; rm -rf "$dir"' EXIT
arrives() { until [[ $(into -c "select name from users where id = 1") == "tick $1" ]]; do pause 0.02; done; }
for tick in $(seq 30); do
    sql "update users set name = 'tick $tick', updated_at = now(), is_deleted = false where id <= 1000"
    timed lag arrives "$tick"
    # Each at another moment of the follower's second.
    pause "0.$((RANDOM % 900 + 100))"
done
echo "from commit to the copy with --every 1s, ms: $(median lag), the 99th percentile $(percentile99 lag)"
