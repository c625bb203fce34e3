# Sourced by the checks that call a service: starts the debug binary on a private Postgres of its own in $work, and ends both when the
# script ends. BINARY names another binary.
#
#   start_service NAME=VALUE…    a service with these settings; sets $api, its address
#   settings                     the command line that gives another process the same settings
#   private                      where its private Postgres is: sets $socket, the folder of its socket
#   address_in LOG PROCESS       waits until a process says in its log where it listens: its address
#   call METHOD PATH …           curl, as the consumer `search`; sends $key where there is one
#   member NAME <JSON            the value of the first member of that name

binary=${BINARY:-$PWD/target/debug/cdc-export}
work=$(mktemp -d)
chmod 755 "$work"
: >"$work/log"
service= key=
trap '[[ -z $service ]] || kill "$service"; wait; rm -rf "$work"' EXIT

die() { printf 'error: %s\n' "$*" >&2; tail -5 "$work/log" >&2; exit 1; }
member() { sed -n "s/.*\"$1\":\"\\{0,1\\}\\([^\",}]*\\).*/\\1/p"; }
call() { curl -fsS -m 70 ${key:+-H "Authorization: Bearer $key"} -H 'X-Consumer-ID: search' -X "$1" "$api$2" "${@:3}"; }

address_in() {
    local _ address
    # Two minutes: it may fill its demo's table first.
    for _ in {1..1200}; do
        address=$(member address <"$1" | tail -1)
        if [[ -n $address ]]; then
            echo "$address"
            return
        fi
        kill -0 "$2" || { tail -5 "$1" >&2; die 'it ended before it listened'; }
        sleep 0.1
    done
    die 'it does not listen'
}

private() { socket=$(sed -n 5p "$work/data/postgres/postmaster.pid"); }

start_service() {
    settings=(env -i PATH="$PATH" HOME="$HOME" PORT=0 LOG_FORMAT=json SEED_ROWS=200 OUTPUT_DIR="$work/output" "$@")
    (cd "$work" && exec "${settings[@]}" "$binary") 2>"$work/log" &
    service=$!
    api=$(address_in "$work/log" "$service")
}
