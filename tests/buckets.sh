#!/usr/bin/env bash
# The tests of output to object stores, with emulators that get real requests: ministack is S3, and GCS as far as an export calls it;
# azurite is Azure. Each listens on a free port of 127.0.0.1, keeps what it gets in memory, and ends with this script.
#
#   tests/buckets.sh                      all of them
#   tests/buckets.sh buckets::outages::   those with such names; arguments go to the program of the tests
#   BUCKETS_THIRD=yes tests/buckets.sh    asks s3s-fs too, another S3 by other people: cargo compiles it once, for some minutes
#   tests/buckets.sh --torture --seed 7   the torture on a bucket in place of the tests; arguments go to it, --store az://… too
#
# The tests and the torture find the emulators by BUCKETS_S3, BUCKETS_GCS and BUCKETS_AZURE. What a machine lacks is said, its addresses are not set, and
# in CI it is a failure. Needs curl, what tests/venv.sh does, and for Azure Node.js with npm; fetches packages from PyPI and npm.
set -euo pipefail
cd "$(dirname "$0")/.."
# The features of a release. The torture reads this variable when it builds the service.
export FEATURES=${FEATURES:-full}

work=$(mktemp -d)
emulators=()
finish() {
    local status=$? process
    for process in "${emulators[@]}"; do
        kill "$process" 2>/dev/null || true
        # One that a test has stopped doesn't hear of its end before it goes on.
        kill -CONT "$process" 2>/dev/null || true
    done
    wait
    rm -rf "$work"
    exit $status
}
trap finish EXIT

# lacks WHAT: says what isn't there; in CI the script ends.
lacks() {
    if [[ ${CI:-} == true ]]; then
        printf 'error: %s\n' "$1" >&2
        exit 1
    fi
    printf 'passed over: %s\n' "$1" >&2
}

# start NAME COMMAND…: an emulator that says in its output where it listens; sets $address once it answers.
start() {
    local name=$1 log=$work/$1.log process _
    shift
    # With a socket that isn't there, ministack removes no container of an engine that is.
    (cd "$work" && exec env -i PATH="$PATH" HOME="$HOME" TMPDIR="$work" DOCKER_HOST="unix://$work/none" "$@") </dev/null >"$log" 2>&1 &
    process=$!
    emulators+=("$process")
    for _ in {1..300}; do
        address=$(grep -om1 'http://127\.0\.0\.1:[1-9][0-9]*' "$log" || true)
        if [[ -n $address ]] && curl -s -m 5 -o /dev/null "$address/"; then
            return 0
        fi
        kill -0 "$process" 2>/dev/null || break
        sleep 0.1
    done
    printf '%s does not answer:\n' "$name" >&2
    tail -5 "$log" >&2
    return 1
}

unset BUCKETS_S3 BUCKETS_S3S BUCKETS_GCS BUCKETS_AZURE

# Without a worker it is one process, so that its id is the one that answers. Where IOT_MTLS_ENABLED isn't 0, it listens to MQTT
# too, on every interface.
if python=$(tests/venv.sh buckets) &&
    start ministack SERVICES=s3 IOT_MTLS_ENABLED=0 \
        "${python%/*}/hypercorn" --workers 0 --graceful-timeout 0 --bind 127.0.0.1:0 ministack.app:app; then
    export BUCKETS_S3=$address BUCKETS_GCS=$address
else
    lacks 'S3 and GCS: no ministack'
fi

# It checks signatures, knows no upload twice, and keeps its objects in files. 0.14.1 is its last version for this compiler.
s3s=$PWD/target/buckets-s3s
install_s3s() {
    # No lints: it isn't ours.
    [[ -x $s3s/bin/s3s-fs ]] || env -u RUSTC_WORKSPACE_WRAPPER \
        cargo install s3s-fs@0.14.1 --features binary --locked --quiet --root "$s3s" --target-dir "$work/s3s-build" >&2
}
if [[ ${BUCKETS_THIRD:-} == yes ]]; then
    mkdir "$work/s3s"
    if install_s3s && start s3s-fs RUST_LOG=s3s_fs=info "$s3s/bin/s3s-fs" --host 127.0.0.1 --port 0 \
        --access-key test --secret-key test "$work/s3s"; then
        export BUCKETS_S3S=$address
    else
        lacks 'the third: no s3s-fs'
    fi
fi

azurite=azurite@3.37.0
modules=$PWD/target/buckets-npm
install_azurite() {
    [[ $(cat "$modules/installed" 2>/dev/null) != "$azurite" ]] || return 0
    mkdir -p "$modules"
    timeout 600 npm install --prefix "$modules" --silent --no-audit --no-fund --no-package-lock --ignore-scripts "$azurite" >&2 || return 1
    echo "$azurite" >"$modules/installed"
}
if ! command -v npm >/dev/null; then
    lacks 'Azure: no npm found: install the packages nodejs and npm'
elif install_azurite && start azurite "$modules/node_modules/.bin/azurite-blob" --inMemoryPersistence --skipApiVersionCheck \
    --disableTelemetry --silent --blobHost 127.0.0.1 --blobPort 0; then
    # Azure's client reads the second one itself, in the test that calls it without a service.
    export BUCKETS_AZURE=$address AZURITE_BLOB_STORAGE_URL=$address
else
    lacks "Azure: no azurite, with Node.js $(node --version)"
fi

if [[ ${1:-} == --torture ]]; then
    shift
    cargo run --locked --features "$FEATURES" --example torture -- --store s3://torture/exports "$@"
else
    cargo test --locked --features "$FEATURES" --test suite -- "${@:-buckets::}"
fi
