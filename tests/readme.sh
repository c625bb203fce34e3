#!/usr/bin/env bash
# README.md, word by word: every `sh` block runs in its order, in one shell, in an empty folder, as a reader would paste it; and what a block
# prints is what the `text` block behind it says, but for ids and times.
#
#   tests/readme.sh                 with target/debug/cdc-export
#   BINARY=… tests/readme.sh        with another build
#
# In place of port 8080 the service gets a free one, `cargo run` and `cargo install` use the binary that is there, and
# `postgres://owner:secret@localhost/shop` is a database of a Postgres that a second service keeps. Needs psql, curl, jq, python3 and a
# Postgres; no root.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -z ${README_CLEAN:-} ]]; then
    # No setting of the caller's changes what a reader sees.
    exec env -i README_CLEAN=yes PATH="$PATH" HOME="$HOME" TMPDIR="${TMPDIR:-/tmp}" ${BINARY:+BINARY="$(realpath "$BINARY")"} tests/readme.sh
fi
readme=$PWD/README.md
. tests/service.sh
reader=
finish() {
    local status=$?
    [[ $status == 0 ]] || tail -n 20 "$work"/*.log "$work"/blocks/*.err >&2 || true
    [[ -z $reader ]] || kill "$reader" || true
    [[ -z $service ]] || kill "$service" || true
    wait
    rm -rf "$work"
    exit $status
}
trap finish EXIT
mkdir "$work/reader" "$work/blocks"

# Somebody's database, with a table that knows nothing of the service.
start_service SEED_ROWS=0
private
as_owner() { psql -qAt -v ON_ERROR_STOP=1 -h "$socket" -U postgres "$@"; }
as_owner cdc_export -c 'create database shop'
as_owner shop -c 'create schema sales; create table sales.orders (id bigint primary key, total numeric, modified_at timestamptz not null)' \
    -c "insert into sales.orders values (1, 9.90, now()), (2, 12, now()), (3, null, now())"
shop="postgres://postgres@localhost/shop?host=$socket"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# The blocks: N.sh, and N.text where the next block says what N.sh prints.
awk -v folder="$work/blocks" '
    /^```/ { if (inside) { inside = 0 } else { inside = 1; kind = substr($0, 4); if (kind == "sh") n++
        if (kind != "") { file = sprintf("%s/%02d.%s", folder, n, kind); printf "" >file } else { file = "/dev/null" } } next }
    inside { print >file }' "$readme"

# Does what a reader does in a second terminal: ends the previous service, and starts one beside the next blocks.
serve() {
    local log=$work/reader.log
    if [[ -n $reader ]]; then kill "$reader" && wait "$reader" || true; fi
    : >"$log"
    PORT=$port LOG_FORMAT=json "$binary" 2>>"$log" &
    reader=$!
    until grep -q '"listening"' "$log"; do kill -0 "$reader" || die 'the service ended'; sleep 0.1; done
}
cargo() {
    case "$*" in
        'run --release') serve ;;
        'install --locked --features full --path .') ;;
        *) die "README runs cargo $*" ;;
    esac
}
cdc-export() { if (($# == 0)); then serve; else "$binary" "$@"; fi; }

# A text without the ids and times that each run has anew.
settled() {
    sed -E -e 's/[0-9a-f]{8}-[0-9a-f-]{27}/ID/g' -e 's/[0-9]{8}T[0-9]{6}Z/TIME/g' \
        -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(\.[0-9]{1,6})?Z/TIME/g' "$1"
}

cd "$work/reader"
for block in "$work"/blocks/*.sh; do
    printf '==> %s\n' "$(head -1 "$block")"
    sed -e "s/localhost:8080/localhost:$port/g" -e "s|postgres://owner:secret@localhost/shop|'$shop'|" "$block" >"$work/block"
    # Sourced, so that what a block exports is there for the next one.
    source "$work/block" >"${block%.sh}.out" 2> >(cat >"${block%.sh}.err")
    if [[ -f ${block%.sh}.text ]]; then
        diff <(settled "${block%.sh}.text") <(settled "${block%.sh}.out") || die 'README shows something else'
    fi
done

# Checks the files that the reader has in the end.
cmp missed.csv output/delta_warehouse_*.csv
[[ $(grep -o '"jobId"' missed.json | wc -l) == 1 ]] || die 'more than one export was missed'
files=(inbox/*/*.csv)
grep -q '^INSERT,1,9.90,' "${files[0]}"
as_owner shop -c 'update sales.orders set total = 13 where id = 2'
source "$work/block" >again.out
[[ $(cat inbox/orders/delta_orders_warehouse_*.csv) == *UPDATE,2,13,* ]] || die 'the second file lacks the change'
files=(inbox/*/*.csv)
[[ ${#files[@]} == 2 ]] || die "inbox has ${files[*]}"
grep -q '^match = \["sales.\*"\]' datasets.toml || die 'datasets.toml lacks the pattern'
echo '==> README runs'
