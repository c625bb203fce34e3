#!/usr/bin/env bash
# Runs Postgres's own regression scripts with every table tracked that gets a key, and compares what deltas add up to with full exports.
#
#   apt-get source postgresql-15        in another folder; the scripts are not kept here
#   tests/regress/run.sh …/postgresql-15-15.18/src/test/regress                  the scripts that run.py lists
#   tests/regress/run.sh …/postgresql-15-15.18/src/test/regress insert merge     these, after test_setup
#
# PG_BIN_DIR names the server's programs; the scripts should be of its version. Needs what tests/service.sh does, psql and python3.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/service.sh
start_service SEED_ROWS=0 ${PG_BIN_DIR:+PG_BIN_DIR="$PG_BIN_DIR"}
private
export PGHOST=$socket PGUSER=postgres
python3 tests/regress/run.py "$(realpath "$binary")" "$work" "$@"
