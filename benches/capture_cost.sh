#!/usr/bin/env bash
# Measures the cost of change capture for writers: each statement on a table with triggers and on its twin without, in turn. Prints for each the
# CPU of the session and the WAL, by row, and how many transaction ids and bytes of temporary files it takes. Medians of the rounds.
#
#   cargo build --release && benches/capture_cost.sh [ROUNDS [PARTITIONS]]
#
# Uses a scratch folder for everything. A steady measure is what the triggers add, against what they add to an INSERT of the same row.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
rounds=${1:-5} partitions=${2:-200}
start_service 0
# Nothing else writes.
sql 'alter system set full_page_writes = off'; sql 'alter system set autovacuum = off'; sql 'select pg_reload_conf()' >/dev/null
for twin in '' _plain; do
    sql "create table narrow$twin (id int primary key, name text);
         create table wide$twin (id int primary key, name jsonb); alter table wide$twin alter name set storage external;
         create table parts$twin (id int, name text, part int, primary key (id, part)) partition by list (part);
         create table parent$twin (id int primary key);
         create table child$twin (id int primary key references parent$twin on delete cascade on update cascade, name text)"
    sql "select format('create table parts${twin}_%s partition of parts$twin for values in (%1\$s);', n)
         from generate_series(0, $partitions - 1) n" | psql -qX
    for n in $(seq 100); do sql "create table many$twin$n (id int primary key, name text)"; done
done
for table in narrow wide parts parent child many{1..100}; do printf '[[dataset]]\nname = "%s"\ntable = "%s"\n' $table $table; done >datasets.toml
DATASETS=datasets.toml DATABASE_URL="postgres://postgres:unused@localhost/cdc_export?host=$PGHOST" "$binary" track --all >/dev/null
machine "$rounds rounds, 0"
cat >cost.sql <<SQL
create temp table cost (what text, is_plain bool, cpu float8, wal float8, xids int8, temp int8);
create function pg_temp.cpu() returns int8 language sql as \$\$ select split_part(pg_read_file('/proc/self/schedstat'), ' ', 1)::int8 \$\$;
-- Runs a statement for all rows at once, or for one row after the other, each in a transaction; %1\$s is the end of a table's name.
create procedure pg_temp.measure(what text, statement text, rows int, one_by_one bool, round int) language plpgsql as \$\$
declare cpu int8; lsn pg_lsn; xid int8; twin text; text_ text;
begin
  foreach twin in array case when round % 2 = 0 then array['', '_plain'] else array['_plain', ''] end loop
    text_ := format(statement, twin);
    commit;
    cpu := pg_temp.cpu(); lsn := pg_current_wal_insert_lsn(); xid := pg_snapshot_xmax(pg_current_snapshot())::text::int8;
    if one_by_one then
      for n in 1..rows loop execute replace(text_, '\$1', n::text); commit; end loop;
    else
      execute text_; commit;
    end if;
    insert into cost values (what, twin <> '', (pg_temp.cpu() - cpu) / 1000.0 / rows, (pg_current_wal_insert_lsn() - lsn) / rows::float8,
      pg_snapshot_xmax(pg_current_snapshot())::text::int8 - xid);
  end loop;
end \$\$;
SQL
# measure WHAT STATEMENT ROWS ONE_BY_ONE: the statement of each round.
measure() { printf 'call pg_temp.measure($w$%s$w$, $q$%s$q$, %s, %s, :round);\n' "$1" "$2" "$3" "$4"; }
wide="(select jsonb_agg(md5(n::text)) from generate_series(1, 480) n)"
{
    for table in narrow wide; do
        value="'name'" size=100000
        [[ $table == narrow ]] || value=$wide size=2000
        measure "\`INSERT\` of one row, $table" "insert into $table%1\$s values (\$1, $value)" 1000 true
        measure "\`UPDATE\` of one row, $table" "update $table%1\$s set name = name where id = \$1" 1000 true
        measure "\`UPDATE\` of one key, $table" "update $table%1\$s set id = -id where id = \$1" 1000 true
        measure "\`DELETE\` of one row, $table" "delete from $table%1\$s where id = -\$1" 1000 true
        measure "\`DELETE\` of no row, $table" "delete from $table%1\$s where id = -\$1" 1000 true
        measure "\`INSERT\` of $size rows, $table" "insert into $table%1\$s select n, $value from generate_series(1, $size) n" $size false
        measure "\`UPDATE\` of $size rows, $table" "update $table%1\$s set name = name" $size false
        measure "\`DELETE\` of $size rows, $table" "delete from $table%1\$s" $size false
    done
    for role in origin replica; do
        table=parts key="id, 'name', mod(id, $partitions)"
        [[ $role == origin ]] || table=narrow key="id, 'name'"
        echo "set session_replication_role = $role;"
        named="$table, $partitions partitions"; [[ $role == origin ]] || named="$table, as a replica"
        measure "\`INSERT\` of 20000 rows, $named" "insert into $table%1\$s select $key from generate_series(1, 20000) id" 20000 false
        measure "\`UPDATE\` of 20000 rows, $named" "update $table%1\$s set name = name" 20000 false
        [[ $role == replica ]] ||
            measure "moves of 20000 rows, $named" "update $table%1\$s set part = mod(part + 1, $partitions)" 20000 false
        measure "\`DELETE\` of 20000 rows, $named" "delete from $table%1\$s" 20000 false
        echo "reset session_replication_role;"
    done
    measure 'prepare the cascade' "insert into parent%1\$s select generate_series(1, 5000)" 5000 false
    measure 'prepare the cascade' "insert into child%1\$s select generate_series(1, 5000), 'name'" 5000 false
    measure '`DELETE` that cascades, 5000 parents' "delete from parent%1\$s" 5000 false
} >round.sql
{
    cat cost.sql
    # The first round makes the plans.
    for round in $(seq 0 "$rounds"); do
        echo "\\set round $round"
        cat round.sql
        ((round > 0)) || echo 'truncate cost;'
        echo 'truncate cdc_export.change_log;'
    done
    cat <<'SQL'
\pset format unaligned
\pset tuples_only on
select format('| %s | %s and %s µs | + %s µs | %s and %s bytes | + %s | %s and %s |', p.what, p.cpu, t.cpu, round((t.cpu - p.cpu)::numeric, 1), p.wal,
  t.wal, t.wal - p.wal, p.xids, t.xids)
from (select what, min(ctid) as place, percentile_cont(0.5) within group (order by cpu)::numeric(9, 1) as cpu,
        percentile_cont(0.5) within group (order by wal)::numeric(9) as wal, max(xids) as xids from cost where is_plain group by what) p
join (select what, percentile_cont(0.5) within group (order by cpu)::numeric(9, 1) as cpu,
        percentile_cont(0.5) within group (order by wal)::numeric(9) as wal, max(xids) as xids from cost where not is_plain group by what) t using (what)
where what not like 'prepare%' order by place
SQL
} >all.sql
echo '| what | CPU of a row without and with the triggers | more | WAL of a row | more | transaction ids |'
echo '|---|---|---|---|---|---|'
psql -qX -v ON_ERROR_STOP=1 -f all.sql
# Memory that a session keeps after writes to many tables.
for twin in _plain ''; do
    for n in $(seq 100); do
        echo "insert into many$twin$n values (1, 'x'); update many$twin$n set name = 'y'; delete from many$twin$n;"
    done >writes.sql
    echo "select 'memory of a session after writes to 100 tables many$twin, kB: '
        || substring(pg_read_file('/proc/self/status') from 'RssAnon:\s*(\d+)')" >>writes.sql
    psql -qXAt -f writes.sql
done
