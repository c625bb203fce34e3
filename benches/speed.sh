#!/usr/bin/env bash
# The service against `psql \copy` of the same rows, in turn: full exports, incrementals of 10,000 changed rows, a delta of all
# rows. Prints each round's ratio (wall of \copy / wall of the service, so higher is faster) and the median.
#
#   cargo build --release && benches/speed.sh [ROWS [ROUNDS]]
#
# Wall time of the service is from POST to `completed`: queue, sha256 and fsync included. CPU is that of the client (psql, or the
# service) and of every process of the server. Uses a scratch folder and a server of its own; READERS and WORKERS are passed on.
set -euo pipefail
rows=${1:-1000000} rounds=${2:-7}
binary=$(cd "$(dirname "$0")/.." && pwd)/target/release/cdc-export
dir=$(mktemp -d) && chmod 755 "$dir" && cd "$dir"
SEED_ROWS=$rows PORT=0 LOG_FORMAT=json "$binary" 2>log & service=$!
trap 'kill $service; wait $service || true; rm -rf "$dir"' EXIT
until grep -q '"listening"' log; do kill -0 $service; sleep 0.1; done
port=$(grep -o 'http://[0-9.:]*' log | tail -1 | cut -d: -f3)
export PGPASSWORD PGHOST PGUSER=postgres PGDATABASE=cdc_export
PGPASSWORD=$(cat data/postgres.password) PGHOST=$(sed -n 5p data/postgres/postmaster.pid)
postmaster=$(head -1 data/postgres/postmaster.pid)

now() { date +%s%6N; }
sql() { psql -qAt -v ON_ERROR_STOP=1 -c "$1"; }
median() { sort -n "$1" | awk '{v[NR] = $1} END {printf "%s [%s - %s]", v[int((NR + 1) / 2)], v[1], v[NR]}'; }
# CPU of living processes in microseconds, and of the server's ended ones.
cpu() { cat $(printf '/proc/%s/task/*/schedstat ' "$@") 2>/dev/null | awk '{ns += $1} END {printf "%d", ns / 1000}'; }
server_cpu() {
    local living ended
    living=$(cpu "$postmaster" $(cat "/proc/$postmaster/task/$postmaster/children"))
    ended=$(sed 's/.*) //' "/proc/$postmaster/stat" | awk -v hz="$(getconf CLK_TCK)" '{printf "%d", ($14 + $15) * 1000000 / hz}')
    echo $((living + ended))
}
peak() { awk '/VmHWM/ {print $2}' "/proc/$service/status"; }
# An answer without a process for it, which would cost more than what is measured.
http() {
    exec 3<>"/dev/tcp/127.0.0.1/$port"
    printf '%s %s HTTP/1.1\r\nHost: localhost\r\nX-Consumer-ID: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' "$1" "$2" "${3-bench}" >&3
    IFS= read -r -d '' answer <&3 || true
    exec 3<&-
}
# export_and_wait TYPE PAUSE: asks every PAUSE seconds whether it is completed.
export_and_wait() {
    http POST "/exports/$1"
    [[ $answer =~ \"jobId\":\"([^\"]*) ]] && local job=${BASH_REMATCH[1]}
    until [[ $answer == *'"status":"completed"'* ]]; do
        [[ $answer != *'"status":"failed"'* ]] || { echo "$answer" >&2; return 1; }
        sleep "$2"; http GET "/exports/$job"
    done
}
# measure COMMAND…: wall and CPU in microseconds as $wall and $used. psql's CPU is that of this shell's ended children.
measure() {
    local a before after client server
    sleep 0.2
    client=$(cpu $service) server=$(server_cpu) before=$(children_cpu) a=$(now)
    "$@"
    wall=$(($(now) - a)) after=$(children_cpu)
    sleep 0.2
    used=$(($(cpu $service) - client + $(server_cpu) - server))
    [ "$1" != copy ] || used=$((used + after - before))
}
# Of this shell's ended children. Not from a subshell, whose own there are none.
children_cpu() { sed 's/.*) //' /proc/$$/stat | awk -v hz="$(getconf CLK_TCK)" '{printf "%d", ($14 + $15) * 1000000 / hz}'; }
copy() { psql -q -c "\\copy ($1) to copy.csv csv header"; }
# compare TITLE QUERY TYPE PAUSE: one round.
compare() {
    local title=$1 copy_wall copy_used
    measure copy "$2"; copy_wall=$wall copy_used=$used
    measure export_and_wait "$3" "$4"
    awk -v title="$title" -v cw=$copy_wall -v cu=$copy_used -v sw=$wall -v su=$used 'BEGIN {
        printf "%-8s copy %.3f s, CPU %.2f s   service %.3f s, CPU %.2f s   ratio %.2f   CPU %.2f\n",
            title, cw / 1e6, cu / 1e6, sw / 1e6, su / 1e6, cw / sw, su / cu}' | tee -a "rounds.$title"
}
summary() {
    awk '{for (i = 1; i < NF; i++) if ($i == "ratio") print $(i + 1)}' "rounds.$1" >ratios
    awk '{print $NF}' "rounds.$1" >cpus
    echo "$1: median ratio $(median ratios), CPU of the service to that of \\copy $(median cpus)"
}

columns='id, name, email, created_at, updated_at, is_deleted'
sql 'vacuum analyze users'; sql checkpoint
fsync=$({ dd if=/dev/zero of=synced bs=4k count=50 oflag=dsync; } 2>&1 | awk '/copied/ {for (i = 1; i < NF; i++) if ($(i + 1) ~ /^s,?$/) printf "%.1f", $i * 1000 / 50}')
printf '%s rows, %s cores, Postgres %s, a synced write of 4 kB takes %s ms, load %s\n' \
    "$rows" "$(nproc)" "$(sql 'show server_version' | cut -d' ' -f1)" "$fsync" "$(cut -d' ' -f1 /proc/loadavg)"

copy "select $columns from users where not is_deleted"
idle=$(peak)
for _ in $(seq "$rounds"); do compare full "select $columns from users where not is_deleted" full 0.01; done
summary full
echo "peak memory of the service: $(peak) kB, idle $idle kB"

for n in $(seq 0 20); do
    before=$(sql 'select clock_timestamp()')
    sql "update users set name = 'changed $n', updated_at = now(), is_deleted = false where id > $((n * 10000 % rows)) and id <= $((n * 10000 % rows + 10000))"
    a=$(now); export_and_wait incremental 0.001; b=$(now)
    [[ $answer == *'"rowsExported":10000,'* ]] || { echo "$answer" >&2; exit 1; }
    c=$(now); copy "select $columns from users where updated_at >= '$before' and not is_deleted"; d=$(now)
    echo $(((b - a) / 1000)) >>changed.service; echo $(((d - c) / 1000)) >>changed.copy
done
echo "incremental of 10000 changed rows, ms: from POST to completed $(median changed.service), a fresh psql \\copy $(median changed.copy)"

for _ in 1 2 3; do
    before=$(sql 'select clock_timestamp()')
    sql "update users set updated_at = now()"; sql 'vacuum analyze users'; sql checkpoint
    compare delta "select case when created_at = updated_at then 'INSERT' else 'UPDATE' end, $columns from users where updated_at >= '$before' and not is_deleted order by id" delta 0.01
done
summary delta
echo "peak memory of the service: $(peak) kB, idle $idle kB"
