#!/usr/bin/env bash
# `cdc-export apply` into another database of the same server: a first full export, and a delta of so many changes, beside `psql \copy` of
# the same table into `\copy` (with the primary key made afterwards, as apply does) and pg_dump into psql. Then the lag of
# `apply --every 1s` while 1,000 rows are changed each second: from a row's commit until the copy has it. Medians of the rounds.
#
#   cargo build --release && benches/apply.sh [ROWS [CHANGES [ROUNDS]]]
#
# Needs Linux, psql and pg_dump. Uses a scratch folder for everything.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
rows=${1:-1000000} changes=${2:-10000} rounds=${3:-5}
start_service "$rows"
binary=$(readlink -f /proc/$service/exe)
trap 'kill $service; wait $service || true; rm -rf "$dir"' EXIT
select="select $columns from users where not is_deleted"
psql -q -c 'create database copy'
into() { psql -q -v ON_ERROR_STOP=1 -d copy "$@"; }
table="(id bigint not null, name text, email text, created_at timestamptz, updated_at timestamptz, is_deleted boolean)"
key='alter table users add primary key (id)'

piped() {
    into -c "create table users $table"
    psql -q -c "\copy ($select) to pstdout csv header" | into -c '\copy users from pstdin csv header'
    into -c "$key"
}
dumped() { pg_dump -t users --no-owner --no-privileges | sed '/TRIGGER/d' | into -o /dev/null >/dev/null; }
apply() { "$binary" apply --to "postgres://$PGUSER:$PGPASSWORD@/copy?host=$PGHOST&port=${PGPORT:-5432}" --consumer "$consumer" --dataset users --server "$server" "$@" >/dev/null 2>&1; }
empty() { into -c 'drop table if exists users; drop schema if exists cdc_apply cascade; checkpoint' 2>/dev/null; }
full() { curl -sf -o /dev/null -X POST -H "X-Consumer-ID: $consumer" "$server/exports/full"; until [[ $(jobs_open) == 0 ]]; do sleep 0.02; done; }
jobs_open() { psql -qtAc "select count(*) from cdc_export.exports where published_at is null and status in ('pending', 'processing', 'completed')"; }
# case_of NAME COMMAND…: appends wall seconds.
case_of() {
    local name=$1 began=$EPOCHREALTIME
    shift
    "$@"
    awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.3f\n", b - a}' >>"case.$name"
}

machine "$rows"
for round in $(seq "$rounds"); do
    consumer=full-$round
    empty; case_of copy_into_copy piped
    empty; case_of pg_dump_into_psql dumped
    full
    empty; case_of apply_what_is_there apply --request none
    consumer=whole-$round
    # Export, transport and load, with nothing there.
    empty; curl -sf -o /dev/null "$server/consumers"; case_of export_and_apply sh_full
done 2>/dev/null || true
