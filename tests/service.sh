# Sourced by the checks that call a service: starts the debug binary on a private Postgres of its own in $work, and ends both when the
# script ends. BINARY names another binary.
#
#   start_service NAME=VALUE…    a service with these settings; sets $api, its address
#   settings                     the command line that gives another process the same settings
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

start_service() {
    settings=(env -i PATH="$PATH" HOME="$HOME" PORT=0 LOG_FORMAT=json SEED_ROWS=200 OUTPUT_DIR="$work/output" "$@")
    (cd "$work" && exec "${settings[@]}" "$binary") 2>"$work/log" &
    service=$!
    local _
    for _ in {1..300}; do
        api=$(member address <"$work/log" | tail -1)
        [[ -z $api ]] || return 0
        kill -0 "$service" || die 'the service ended'
        sleep 0.1
    done
    die 'the service does not listen'
}
