#!/usr/bin/env bash
# The pages of another table that stay in Postgres's buffers beside a full export of a large one: by the service, and by `\copy`.
#
#   cargo build --release && benches/buffers.sh [ROWS]
#   READERS=1 benches/buffers.sh
#
# The demo's table must be larger than shared_buffers, which has 128 MB here: 3,000,000 users are three times as much.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
rows=${1:-3000000}
start_service "$rows"
sql 'create extension pg_buffercache'
sql "create table hot as select n as id, repeat('y', 80) as text from generate_series(1, 100000) n"
sql 'vacuum analyze hot'; sql 'vacuum analyze users'
of_hot="from pg_buffercache where relfilenode = pg_relation_filenode('hot')"
# left NAME COMMAND…: the pages of `hot` before it and after it, each used as often as Postgres counts.
left() {
    local name=$1 before
    shift
    for _ in 1 2 3 4 5 6; do sql 'select sum(id) from hot' >/dev/null; done
    before=$(sql "select count(*) $of_hot")
    "$@" >/dev/null
    printf '%-28s %s of %s pages are left\n' "$name" "$(sql "select count(*) $of_hot")" "$before"
}
machine "$rows"
for _ in 1 2; do
    left '\copy' copy "select $columns from users"
    left "full, READERS=${READERS:-unset}" export_and_wait full
done
