# `just` lists the recipes.

# The features of a release.
export FEATURES := env("FEATURES", "full")

# Lists the recipes.
default:
    @just --list --unsorted

# Everything that each change must pass; CI runs the same.
check:
    .ci/run

# All other checks, or only the named steps; CONTRIBUTING.md says which steps to run for which files.
nightly *steps:
    .ci/nightly {{ steps }}

# Formats the sources.
fmt:
    cargo fmt

# Clippy, warnings being errors.
lint:
    cargo clippy --locked --all-targets --features {{ FEATURES }} -- -D warnings

# All tests, or those that match; they start their own Postgres.
test *args:
    cargo test --locked --features {{ FEATURES }} {{ args }}

# Renews docs/openapi.json, which the tests compare with the service.
openapi:
    RENEW_OPENAPI=1 cargo test --locked --features {{ FEATURES }} --test suite -- openapi::the_document_in_the_clone

# For example `just torture --seed 7 --secs 600`, or `just torture --controls`; docs/internals/TORTURE.md says what it does.
#
# Kills, stops and cuts off three replicas for three minutes, and looks for what was lost.
torture *args:
    cargo run --locked --release --features {{ FEATURES }} --example torture -- {{ args }}

# As `just torture`, with two replicas that share a bucket and no folder; `--store az://torture/exports` is one of Azure.
#
# The same on an emulator of S3.
torture-buckets *args:
    tests/buckets.sh --torture {{ args }}

# Not a step of CI: the list is fetched from the network, and it changes without a change of ours.
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
    cargo llvm-cov --locked --features {{ FEATURES }} --fail-under-lines 85 {{ args }}

# The service.
run *args:
    cargo run --locked --features {{ FEATURES }} -- {{ args }}
