#!/usr/bin/env bash
# An upgrade: the last release's binary and today's on one database, side by side, and back again. tests/upgrade.py says what is tried.
#
#   tests/upgrade.sh                with target/debug/cdc-export, and the release's, which is built from this clone's history
#   BINARY=… tests/upgrade.sh       with another build
#
# RELEASE is the release's commit; a release puts its tag here. The newest that can be is the one before the newest migration, or nothing
# would be tried. Needs what tests/service.sh does, psql, python3, git, and the history down to that commit.
set -euo pipefail
cd "$(dirname "$0")/.."
# It knows neither schedules, deliveries nor traces. tests/suite/layering.rs holds that the migrations since then only add.
RELEASE=c805cdb69bd58dacf0957ef7345c4f39f6dbdc1e

commit=$(git rev-parse --verify --quiet "$RELEASE^{commit}") || {
    echo "not tried: the clone lacks the commit $RELEASE, which is upgraded from"
    # A whole history that lacks it means that the name is wrong.
    [[ ${CI:-} != true || $(git rev-parse --is-shallow-repository 2>/dev/null) != false ]] || exit 1
    exit 0
}
before=target/before/$commit
if [[ ! -x $before/cdc-export ]]; then
    # Under a name of its own, so that it takes no other's place among what is compiled here; the dependencies are those of today's.
    source=$before/source
    rm -rf "$before"
    mkdir -p "$source"
    git archive "$commit" | tar -x -C "$source"
    printf '\n[[bin]]\nname = "cdc-export-before"\npath = "src/main.rs"\n' >>"$source/Cargo.toml"
    # A commit from before there was a workspace is no member of this one.
    grep -qx '\[workspace\]' "$source/Cargo.toml" || printf '\n[workspace]\n' >>"$source/Cargo.toml"
    CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target} CARGO_INCREMENTAL=0 RUSTC_WORKSPACE_WRAPPER='' \
        cargo build --quiet --manifest-path "$source/Cargo.toml" --bin cdc-export-before
    cp "${CARGO_TARGET_DIR:-target}/debug/cdc-export-before" "$before/cdc-export"
fi

. tests/service.sh
# Somebody's Postgres, which outlives both.
start_service SEED_ROWS=0
private
PGPASSWORD=$secret psql -qAt -h "$socket" -U postgres -c 'create database shop' postgres
python3 tests/upgrade.py "$PWD/$before/cdc-export" "$(realpath "$binary")" "postgres://postgres:$secret@localhost/shop?host=$socket" "$work"
