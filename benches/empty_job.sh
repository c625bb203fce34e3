#!/usr/bin/env bash
# The cost of a job that finds nothing: deltas of many small tables with skipEmpty, after an equal job. Prints the time
# and the WAL of each job, its statements if Postgres has pg_stat_statements, and the medians.
#
#   cargo build --release && benches/empty_job.sh [TABLES [JOBS]]
#
# BINARY: another build, for a comparison, also one that calls such a job a batch. Uses a scratch folder for everything.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
tables=${1:-100} jobs=${2:-5}
start_service 0
sql "do \$\$ begin for n in 1..$tables loop
    execute format('create table t%s as select id, md5(id::text) as name from generate_series(1, 10) id', n);
    execute format('alter table t%s add primary key (id)', n);
end loop; end \$\$"
for n in $(seq "$tables"); do printf '[[dataset]]\nname = "t%s"\ntable = "t%s"\n' "$n" "$n"; done >datasets.toml
DATASETS=datasets.toml DATABASE_URL="postgres://postgres:unused@localhost/cdc_export?host=$PGHOST" "$binary" track --all >/dev/null
# Nothing else writes.
sql 'alter system set full_page_writes = off'; sql 'alter system set autovacuum = off'
statements=null
if [[ $(sql "select count(*) from pg_available_extensions where name = 'pg_stat_statements'") == 1 ]]; then
    sql 'create extension pg_stat_statements'; sql "alter system set shared_preload_libraries = 'pg_stat_statements'"
    statements="(select sum(calls) from pg_stat_statements where query not like '%pg_stat_statements%')"
fi
kill $service; wait $service || true
DATASETS=datasets.toml listen 0
machine "$((tables * 10))"

# run_job TYPE: a job of all tables, until it has ended. Sets $exports, the table of its exports.
run_job() {
    local path=/exports
    exports=cdc_export.exports
    http POST "/exports/$1" '{"datasets": "*", "skipEmpty": true}'
    [[ $answer =~ \"(job|batch)Id\":\"([^\"]*) ]] || { echo "$answer" >&2; return 1; }
    [[ ${BASH_REMATCH[1]} == job ]] || path=/batches exports=exports
    path+=/${BASH_REMATCH[2]}
    # Before the list of its exports.
    until [[ ${answer%%:\[*} == *'"status":"completed"'* ]]; do
        [[ ${answer%%:\[*} != *'"status":"failed"'* ]] || { echo "${answer:0:2000}" >&2; return 1; }
        http GET "$path?wait=60"
    done
}
# The rows of earlier jobs that found nothing are removed after a minute.
age() { sql "update $exports set finished_at = finished_at - interval '2 minutes' where finished_at is not null"; }
# counters: the WAL and the statements so far, into variables of these names with $1 behind them.
counters() { IFS='|' read -r "wal$1" "calls$1" < <(sql "select pg_current_wal_lsn() - '0/0', $statements"); }

run_job full
for _ in 1 2; do run_job delta; age; done
printf '%-8s %10s %10s %12s\n' job ms 'WAL, kB' statements
for n in $(seq "$jobs"); do
    counters _before
    clock began; run_job delta; clock ended
    counters _after
    age
    milliseconds $((ended - began)) >>times
    awk -v bytes=$((wal_after - wal_before)) 'BEGIN {printf "%.1f\n", bytes / 1024}' >>wal
    [[ -z $calls_after ]] || echo $((calls_after - calls_before)) >>calls
    printf '%-8s %10s %10s %12s\n' "$n" "$(tail -1 times)" "$(tail -1 wal)" "$([[ ! -s calls ]] || tail -1 calls)"
done
echo "a job of $tables empty deltas: $(median times) ms, WAL $(median wal) kB$([[ ! -s calls ]] || echo ", statements $(median calls)")"
