# Library of the scripts here, to be sourced: a service with a private server of its own in a scratch folder, its calls, and
# clocks for wall time, CPU and memory. Times are in microseconds. For bash 5 on Linux, whose /proc tells them.

# BINARY names another one than the release's.
binary=$(realpath "${BINARY:-$(dirname "${BASH_SOURCE[0]}")/../target/release/cdc-export}")

# start_service ROWS: sets $service (its process), $port, $dir (the scratch folder, entered), $postmaster and libpq's variables.
start_service() {
    # A private server in the scratch folder is wanted, whatever the caller has.
    unset DATABASE_URL DATA_DIR OUTPUT_DIR
    dir=$(mktemp -d) && chmod 755 "$dir" && cd "$dir"
    trap 'kill $service; wait $service || true; rm -rf "$dir"' EXIT
    listen "$1"
    # The server asks for no password, but some peers don't connect without one.
    export PGPASSWORD=unused PGHOST PGUSER=postgres PGDATABASE=cdc_export
}
# listen ROWS: the same in the folder that was entered, once its last service has ended.
listen() {
    : >log
    SEED_ROWS=$1 PORT=0 LOG_FORMAT=json "$binary" 2>log & service=$!
    until grep -q '"listening"' log; do kill -0 $service; sleep 0.1; done
    port=$(grep -o 'http://[0-9.:]*' log | tail -1 | cut -d: -f3)
    PGHOST=$(sed -n 5p data/postgres/postmaster.pid)
    postmaster=$(head -1 data/postgres/postmaster.pid)
}

columns='id, name, email, created_at, updated_at, is_deleted'
sql() { psql -qAt -v ON_ERROR_STOP=1 -c "$1"; }
copy() { psql -q -c "\\copy ($1) to ${2:-copy.csv} csv header"; }
load() { cut -d' ' -f1 /proc/loadavg; }
# clock NAME: the time, into a variable. Without a process, which takes a millisecond; so is the pause.
clock() { printf -v "$1" %s "${EPOCHREALTIME//[!0-9]/}"; }
exec {never}<> <(:)
pause() { read -rt "$1" <&"$never" || true; }
# Prints the 99th percentile of the numbers in a file.
percentile99() { sort -n "$1" | awk '{v[NR] = $1} END {print v[int((NR * 99 + 99) / 100)]}'; }
# Prints the numbers in a file as: median [smallest - largest].
median() { sort -n "$1" | awk '{v[NR] = $1} END {printf "%s [%s - %s]", v[int((NR + 1) / 2)], v[1], v[NR]}'; }
milliseconds() { awk -v us="$1" 'BEGIN {printf "%.1f\n", us / 1000}'; }
# timed FILE COMMAND…: runs it, and appends its milliseconds to the file.
timed() {
    local file=$1 began ended
    shift
    clock began; "$@"; clock ended
    milliseconds $((ended - began)) >>"$file"
}
# ratios DIVIDENDS DIVISORS: of the numbers in two files, line by line, into the file `ratios`.
ratios() { paste "$1" "$2" | awk '{printf "%.2f\n", $1 / $2}' >ratios; }
# each N TIMES
each() { awk -v n="$1" -v times="$2" 'BEGIN {printf "%.1f", n / times}'; }
# Prints the time of a synced write of 4 kB here, in milliseconds.
synced_write() {
    { LC_ALL=C dd if=/dev/zero of=synced bs=4k count=50 oflag=dsync; } 2>&1 |
        awk '/copied/ {for (i = 1; i < NF; i++) if ($(i + 1) ~ /^s,?$/) printf "%.2f", $i * 1000 / 50}'
}
# The machine, for the head of a script's output.
machine() {
    printf '%s rows, %s cores, Postgres %s, a synced write of 4 kB takes %s ms, load %s\n' \
        "$1" "$(nproc)" "$(sql 'show server_version' | cut -d' ' -f1)" "$(synced_write)" "$(load)"
}

# http METHOD PATH [BODY]: $answer, without a process for it, which would cost more than what is measured. For the consumer
# $consumer, with the lines of $headers, each of which ends in \r\n.
consumer=bench headers=
http() {
    local body=${3-}
    exec 3<>"/dev/tcp/127.0.0.1/$port"
    printf '%s %s HTTP/1.1\r\nHost: localhost\r\nX-Consumer-ID: %s\r\nContent-Type: application/json\r\nContent-Length: %s\r\nConnection: close\r\n%s\r\n%s' \
        "$1" "$2" "$consumer" "${#body}" "$headers" "$body" >&3
    IFS= read -r -d '' answer <&3 || true
    exec 3<&-
}
# export_and_wait TYPE [BODY]: leaves the completed job in $answer. The service answers as soon as it is; a client that asks again
# and again would take CPU from what is measured.
export_and_wait() {
    http POST "/exports/$1" "${2-}"
    [[ $answer =~ \"jobId\":\"([^\"]*) ]] || { echo "$answer" >&2; return 1; }
    job=${BASH_REMATCH[1]} owner=$consumer
    until [[ $answer == *'"status":"completed"'* ]]; do
        [[ $answer != *'"status":"failed"'* ]] || { echo "$answer" >&2; return 1; }
        http GET "/exports/$job?wait=60"
    done
}
# A number or a text of the last answer's job.
of_answer() { [[ $answer =~ \"$1\":\"?([^\",}]*) ]] && echo "${BASH_REMATCH[1]}"; }

# CPU of living processes.
cpu() { cat $(printf '/proc/%s/task/*/schedstat ' "$@") 2>/dev/null | awk '{ns += $1} END {printf "%d", ns / 1000}'; }
# Prints the CPU time of a process's ended children that it has waited for.
cpu_of_ended() { sed 's/.*) //' "/proc/$1/stat" | awk -v hz="$(getconf CLK_TCK)" '{printf "%d", ($14 + $15) * 1000000 / hz}'; }
# Prints the CPU time of the server, including its ended sessions.
server_cpu() { echo $(($(cpu "$postmaster" $(cat "/proc/$postmaster/task/$postmaster/children")) + $(cpu_of_ended "$postmaster"))); }
# Prints the memory of a process in kB: VmRSS is the present one, VmHWM the peak. `forget_peak` resets the peak.
memory() { awk -v what="$1:" '$1 == what {print $2}' "/proc/$2/status"; }
forget_peak() { echo 5 >"/proc/$1/clear_refs"; }

# Removes the file of the last `\copy` and that of the last export. Where they stay, each export is written to memory that the
# machine has not used before, which a virtual one gets from its host at a price above that of the writing, and `\copy`, which
# writes over its last file, is not.
job='' owner=''
remove_files() {
    rm -f copy.*
    [[ -z $job ]] || consumer=$owner http DELETE "/exports/$job"
    job=
}

# measure COMMAND…: $wall, and $used, the CPU of the server, the service and of what the command ran and waited for; $served is the
# server's of it.
measure() {
    local began ended service_was server_was children_was
    remove_files
    # Waits until the last case's leftover work is done.
    pause 0.2
    service_was=$(cpu "$service") server_was=$(server_cpu) children_was=$(cpu_of_ended $$)
    clock began
    "$@"
    clock ended
    wall=$((ended - began)) used=$(($(cpu_of_ended $$) - children_was))
    # A session ends after its client.
    pause 0.2
    served=$(($(server_cpu) - server_was))
    used=$((used + $(cpu "$service") - service_was + served))
}

# compare TITLE QUERY TYPE: one round.
compare() {
    local title=$1 copy_wall copy_used
    measure copy "$2"; copy_wall=$wall copy_used=$used
    measure export_and_wait "$3"
    awk -v title="$title" -v cw=$copy_wall -v cu=$copy_used -v sw=$wall -v su=$used -v served=$served 'BEGIN {
        printf "%-8s copy %.3f s, CPU %.2f s   service %.3f s, CPU %.2f s (server %.2f)   ratio %.2f   CPU %.2f\n",
            title, cw / 1e6, cu / 1e6, sw / 1e6, su / 1e6, served / 1e6, cw / sw, su / cu}' | tee -a "rounds.$title"
}
summary() {
    awk '{for (i = 1; i < NF; i++) if ($i == "ratio") print $(i + 1)}' "rounds.$1" >ratios
    awk '{print $NF}' "rounds.$1" >cpus
    echo "$1: median ratio $(median ratios), CPU of the service to that of \\copy $(median cpus)"
}

# incrementals TIMES: 10,000 rows change, then the service and a fresh psql take them in turn. For $rows rows.
incrementals() {
    local n before first
    for n in $(seq "$1"); do
        before=$(sql 'select clock_timestamp()')
        first=$((n * 10000 % rows))
        sql "update users set name = 'changed $n', updated_at = now(), is_deleted = false where id > $first and id <= $((first + 10000))"
        timed changed.service export_and_wait incremental
        [[ $answer == *'"rowsExported":10000,'* ]] || { echo "$answer" >&2; return 1; }
        timed changed.copy copy "select $columns from users where updated_at >= '$before' and not is_deleted"
        awk -v s="$(of_answer durationSeconds)" 'BEGIN {printf "%.1f\n", s * 1000}' >>changed.job
    done
    echo "incremental of 10000 changed rows, ms: from POST to completed $(median changed.service), the 99th percentile $(percentile99 changed.service), from claim to commit $(median changed.job), a fresh psql \\copy $(median changed.copy)"
}

# logged COMMAND…: runs it, while the server logs each statement with its time. Leaves the server's lines meanwhile in the file `logged`.
logged() {
    local from
    from=$(stat -c %s data/postgres.log)
    sql 'alter system set log_min_duration_statement = 0'; sql 'select pg_reload_conf()' >/dev/null
    pause 0.2
    "$@"
    sql 'alter system reset log_min_duration_statement'; sql 'select pg_reload_conf()' >/dev/null
    pause 0.2
    tail -c +$((from + 1)) data/postgres.log >logged
}

# The consumer's position as the service writes it into a statement.
position() {
    sql "select to_char(last_exported_at at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS.US') || '+00', live_snapshot, deletions_snapshot
        from watermarks where consumer_id = '$consumer'"
}
# delta_statement: sets $statement, the query that the service reads a delta after a delta with, on a line, and $since, its position.
delta_statement() {
    # One after an incremental has the deletions to make up for, in a statement of their own.
    export_and_wait delta
    since=$(position)
    logged export_and_wait delta
    statement=$(awk '/^[^\t]/ {inside = /-- source.copy.changes/; if (inside) text = ""; next}
        inside {sub(/--.*/, ""); text = text " " $0}
        END {gsub(/[\t ]+/, " ", text); sub(/^ copy \(/, "", text); sub(/\) to stdout \(format binary\) *$/, "", text); print text}' logged)
    [[ $statement == *'union all'* ]]
}
# The same with the position in it that the consumer has now: what psql would have to send for the same rows.
same_statement() {
    local n text=$statement old new
    IFS='|' read -ra old <<<"$since"
    IFS='|' read -ra new < <(position)
    [[ $text == *"'${old[0]}'"*"'${old[1]}'"* || $text == *"'${old[1]}'"*"'${old[0]}'"* ]] || { echo "no position in $text" >&2; return 1; }
    for n in "${!old[@]}"; do text=${text//"'${old[n]}'"/"@$n@"}; done
    for n in "${!new[@]}"; do text=${text//"@$n@"/"'${new[n]}'"}; done
    echo "$text"
}
# deltas TIMES: every row changes, then psql takes them, by the service's own statement and from the table alone, and the service.
deltas() {
    local before same
    delta_statement
    for _ in $(seq "$1"); do
        before=$(sql 'select clock_timestamp()')
        sql "update users set updated_at = now()"; sql 'vacuum analyze users'; sql checkpoint
        measure copy "$(same_statement)"; same=$wall
        compare delta "select case when created_at = updated_at then 'INSERT' else 'UPDATE' end, $columns from users where updated_at >= '$before' and not is_deleted order by id" delta
        awk -v cw=$same -v sw=$wall 'BEGIN {printf "         copy of the same statement %.3f s   ratio %.2f\n", cw / 1e6, cw / sw}' | tee -a rounds.same
    done
    summary delta
    awk '{print $NF}' rounds.same >ratios
    echo "delta: median ratio to \copy of the same statement $(median ratios)"
}
