#!/usr/bin/env bash
# Measures an export's queries before it reads: the look at its table, and the statement that opens its snapshot, with the guard.
# The tables are one of 10 columns, one of 300, one of 100 partitions, and one with a filter. Medians, with the smallest and the largest value.
#
#   cargo build --release && benches/guard_cost.sh [TIMES]
#
# BINARY: another build, for a comparison. Uses a scratch folder for everything.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
times=${1:-100}
tables=(orders wide parts filtered)

unset DATASETS
start_service 0
for name in "${tables[@]}"; do printf '[[dataset]]\nname = "%s"\ntable = "%s"\n' "$name" "$name"; done >datasets.toml
echo "filter = \"e > 7 or e is null\"" >>datasets.toml
ten='id int primary key, a text, b numeric(10,2), c timestamptz, d jsonb, e int, f int, g text, h bool, i uuid'
wide=$(for n in $(seq 299); do printf ', c%s int default %s' "$n" "$n"; done)
sql "create table orders ($ten); create table filtered ($ten); create table wide (id int primary key$wide);
     create table parts (id int primary key, a numeric(10,2)) partition by range (id)"
for n in $(seq 100); do echo "create table parts_$n partition of parts for values from (${n}0) to ($((n + 1))0);"; done | psql -q
for name in "${tables[@]}"; do
    sql "insert into $name (id) select n from generate_series(10, 99) n"
    DATASETS=datasets.toml "$binary" track "$name" >/dev/null
done
kill $service; wait $service || true
DATASETS=datasets.toml listen 0

empty_incrementals() { for _ in $(seq "$1"); do export_and_wait incremental "{\"dataset\":\"$name\"}"; done; }
for name in "${tables[@]}"; do
    export_and_wait full "{\"dataset\":\"$name\"}"
    # A connection's first exports plan their statements anew.
    empty_incrementals 20
    logged empty_incrementals "$times"
    for statement in table_schema.columns filter.called snapshot.open; do
        grep -E "(bind|execute) [^ ]*: -- source.$statement\$" logged |
            sed -E 's/.*duration: ([0-9.]+) ms  (bind|execute).*/\1 \2/' |
            awk '$2 == "bind" {bind = $1} $2 == "execute" {print bind + $1}' >spent || true
        [ ! -s spent ] || echo "$name: $statement, ms: $(median spent)"
    done
done
echo "load $(load)"
