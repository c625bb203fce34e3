#!/usr/bin/env bash
# A disk that fills up, is mounted read-only, goes away and is frozen under a running service, as a small tmpfs in a mount namespace of
# this script's own; and a full disk under its Postgres. Only real root can mount the disk that is frozen. Needs root, or a kernel that gives
# ordinary users namespaces. `cargo build --release` comes first; BINARY names another build.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -z ${IN_NAMESPACE:-} ]]; then
    own=(unshare --mount)
    [[ $(id -u) == 0 ]] || own=(unshare --user --mount --map-current-user --keep-caps)
    IN_NAMESPACE=yes exec "${own[@]}" bash "$PWD/tests/disk.sh"
fi

BINARY=${BINARY:-$PWD/target/release/cdc-export}
. tests/service.sh
mkdir "$work/output"
trap 'fsfreeze --unfreeze "$work/output" 2>/dev/null || true; [[ -z $service ]] || kill "$service"; wait; umount --lazy "$work/output" "$work/small" 2>/dev/null || true; rm -rf "$work"' EXIT

ask() { curl -sS -m 70 "$@"; }
# Submits an export and waits for its end: its status and error code.
export_of() {
    local id job
    id=$(ask -X POST -H "X-Consumer-ID: $1" "$api/exports/full" | member jobId)
    job=$(ask "$api/exports/$id?wait=60")
    printf '%s %s' "$(member status <<<"$job")" "$(member code <<<"$job")"
}
expect() { [[ $2 == "$3" ]] || die "$1: $2, expected $3"; printf 'ok: %s: %s\n' "$1" "$2"; }
# Waits until the service answers with this status, and prints the last one: a look at the folder counts for a second.
ready() {
    for _ in {1..40}; do
        status=$(ask -o /dev/null -w '%{http_code}' "$api/health/ready")
        [[ $status != "$1" ]] || break
        sleep 0.1
    done
    echo "$status"
}
free() { stat --file-system --format '%a %S' "$work/output" | { read -r blocks size; echo $((blocks * size >> 20)); }; }

mount -t tmpfs -o size=64m,mode=755 none "$work/output"
start_service MAX_ATTEMPTS=1 SEED_ROWS=400000

expect 'an export larger than the disk' "$(export_of big)" 'failed storage_full'
(($(free) >= 20)) || die "it left $(free) MiB"
expect 'it left nothing behind' "$(find "$work/output" -name '*.part' | wc -l)" 0
expect 'the service is ready again' "$(ready 200)" 200

dd if=/dev/zero of="$work/output/somebody's" bs=1M count=40 status=none
expect 'hardly any room is left' "$(ready 503)" 503
expect 'an export then' "$(export_of big)" 'failed storage_full'
rm "$work/output/somebody's"
mount -o remount,size=256m "$work/output"
expect 'the same on a larger disk' "$(export_of big)" 'completed '

mount -o remount,ro "$work/output"
expect 'a disk that can only be read' "$(ready 503)" 503
expect 'an export to it' "$(export_of big)" 'failed storage_readonly'
mount -o remount,rw "$work/output"
umount --lazy "$work/output"
expect 'no disk' "$(ready 503)" 503
expect 'an export to none' "$(ask -X POST -H 'X-Consumer-ID: big' "$api/exports/full" | member code)" output_missing
expect 'the service lives' "$(ask -o /dev/null -w '%{http_code}' "$api/health")" 200

kill "$service"
wait "$service" || true
mkdir "$work/small" "$work/output/again"
mount -t tmpfs -o size=300m,mode=755 none "$work/small"
start_service DATA_DIR="$work/small" OUTPUT_DIR="$work/output/again"
untrack() { (cd "$work" && "${settings[@]}" "$binary" untrack --all 2>&1); }
dd if=/dev/zero of="$work/small/somebody's" bs=8k status=none 2>/dev/null || true
said=$(untrack) && die "untrack has noted something on a full disk: $said"
[[ $said == *'public.users` is no longer captured: its triggers are gone'*'No space left on device' ]] || die "$said"
printf 'ok: untrack on a full disk: the triggers are gone\n'
rm "$work/small/somebody's"
said=$(untrack) || die "$said"
printf 'ok: untrack with room again: it is noted\n'

kill "$service"
wait "$service" || true
service=
truncate --size=128M "$work/disk"
if ! { mkfs.ext4 -q "$work/disk" && mount -o loop "$work/disk" "$work/output"; } 2>/dev/null; then
    echo 'not frozen: this user may not mount a file'
    exit
fi
start_service MAX_ATTEMPTS=1
expect 'another disk' "$(ready 200)" 200
fsfreeze --freeze "$work/output"
expect 'a frozen disk' "$(ready 503)" 503
expect 'its lines in the log' "$(grep -c output_not_ready "$work/log")" 1
fsfreeze --unfreeze "$work/output"
expect 'the disk is thawed' "$(ready 200)" 200
expect 'an export to it' "$(export_of thawed)" 'completed '
