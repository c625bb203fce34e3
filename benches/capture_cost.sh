#!/usr/bin/env bash
# What change capture costs: single-row and bulk UPDATEs with and without the triggers, and a delta of 1 % of the rows against
# `psql \copy` of the same rows. Everything in turn; medians, with the smallest and the largest value in brackets.
#
#   cargo build --release && benches/capture_cost.sh [ROWS [ROUNDS [SECONDS]]]
#
# The copy without triggers has the demo's own row trigger, as the table has. Uses a scratch folder for everything.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
rows=${1:-1000000} rounds=${2:-7} seconds=${3:-4}
start_service "$rows"
# The one beside the server: it knows the server's version.
bin=$(dirname "$(readlink "/proc/$postmaster/exe")")

sql 'create table users_plain (like users including all);
     insert into users_plain select * from users;
     create trigger users_operation_type before insert or update on users_plain
       for each row execute function cdc_export.users_operation_type()'
sql 'vacuum analyze users'; sql 'vacuum analyze users_plain'
machine "$rows"

for table in users users_plain; do
    printf '\\set id random(1, %s)\nupdate %s set name = $$bench$$, updated_at = now() where id = :id;\n' "$rows" "$table" >$table.sql
done
for commit in on off; do
    rm -f tps.*
    for _ in $(seq "$rounds"); do
        for table in users_plain users; do
            PGOPTIONS="-c synchronous_commit=$commit" "$bin/pgbench" -n -c 1 -T "$seconds" -M prepared -f $table.sql |
                sed -n 's/^tps = \([0-9]*\).*/\1/p' >>tps.$table
        done
        echo "$(tail -1 tps.users) $(tail -1 tps.users_plain)" | awk '{printf "%.1f\n", 100 - 100 * $1 / $2}' >>tps.loss
    done
    echo "single-row UPDATE/s, synchronous_commit $commit: without $(median tps.users_plain)  with $(median tps.users)  loss % $(median tps.loss)"
done

# In a session whose triggers have planned for single rows.
bulk() {
    {
        for id in $(seq 20); do echo "update $1 set name = 'one' where id = $id;"; done
        printf '\\timing on\nupdate %s set name = $$bulk$$, updated_at = now() where id <= %s;\n' "$1" $((rows / 5))
    } | psql -qAt -v ON_ERROR_STOP=1 | sed -n 's/^Time: \([0-9]*\).*/\1/p' >>bulk.$1
    sql "vacuum $1"
}
for _ in 1 2 3; do bulk users_plain; bulk users; done
echo "UPDATE of $((rows / 5)) rows, ms: without $(median bulk.users_plain)  with $(median bulk.users)"

export_and_wait full
for round in $(seq 20); do
    before=$(sql 'select clock_timestamp()')
    sql "update users set name = 'round $round', updated_at = now(), is_deleted = false where id % 100 = $round"
    clock a; export_and_wait delta; clock b
    [[ $answer == *"\"rowsExported\":$((rows / 100)),"* ]] || { echo "$answer" >&2; exit 1; }
    awk -v s="$(of_answer durationSeconds)" 'BEGIN {printf "%.0f\n", s * 1000}' >>delta.job
    clock c; copy "select $columns from users where updated_at >= '$before'"; clock d
    [ "$(wc -l <copy.csv)" = $((rows / 100 + 1)) ]
    milliseconds $((b - a)) >>delta.service; milliseconds $((d - c)) >>delta.copy
done
echo "delta of $((rows / 100)) rows, ms: from POST to completed $(median delta.service), the job itself $(median delta.job), psql \\copy $(median delta.copy)"
