#!/usr/bin/env bash
# An upgrade: the last release's binary and today's on one database, side by side, and back again. tests/upgrade.py says what is tried.
#
#   tests/upgrade.sh                with target/debug/cdc-export, and the release's, which is built from this clone's history
#   BINARY=… tests/upgrade.sh       with another build
#
# The release is the last tag before this commit; without one, it is the last commit that changed migrations/0001_schema.sql. If no migration came since,
# both binaries use one schema.
# Needs what tests/service.sh does, psql, python3, git, and the history down to that commit.
set -euo pipefail
cd "$(dirname "$0")/.."

if tag=$(git describe --tags --abbrev=0 --match 'v*' 'HEAD^' 2>/dev/null); then
    commit=$(git rev-parse "$tag^{commit}")
else
    commit=$(git log -1 --format=%H -- migrations/0001_schema.sql)
fi
if [[ -z $commit ]]; then
    echo "not tried: the clone has no commit with migrations/0001_schema.sql, which is upgraded from"
    # A whole history that lacks it means that the name is wrong.
    [[ ${CI:-} != true || $(git rev-parse --is-shallow-repository 2>/dev/null) != false ]] || exit 1
    exit 0
fi
before=target/before/$commit
if [[ ! -x $before/cdc-export ]]; then
    # Under a name of its own, so that it takes no other's place among what is compiled here; the dependencies are those of today's.
    source=$before/source
    rm -rf "$before"
    mkdir -p "$source"
    git archive "$commit" | tar -x -C "$source"
    printf '\n[[bin]]\nname = "cdc-export-before"\npath = "src/main.rs"\n' >>"$source/Cargo.toml"
    CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target} CARGO_INCREMENTAL=0 \
        cargo build --quiet --manifest-path "$source/Cargo.toml" --bin cdc-export-before
    cp "${CARGO_TARGET_DIR:-target}/debug/cdc-export-before" "$before/cdc-export"
fi

. tests/service.sh
# Somebody's Postgres, which outlives both.
start_service SEED_ROWS=0
private
PGPASSWORD=$secret psql -qAt -h "$socket" -U postgres -c 'create database shop' postgres
python3 tests/upgrade.py "$PWD/$before/cdc-export" "$(realpath "$binary")" "postgres://postgres:$secret@localhost/shop?host=$socket" "$work"
