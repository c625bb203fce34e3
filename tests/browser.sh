#!/usr/bin/env bash
# The page in a real browser: tests/browser.py drives Chromium against the debug binary on a private Postgres of its own.
#
#   tests/browser.sh                   all of it
#   tests/browser.sh tour narrow       what has one of these words in its name
#   tests/browser.sh --pictures docs   no tests, but docs/page.png and its siblings anew
#   CHROMIUM=/path/to/chrome tests/browser.sh
#
# `cargo build` comes first.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

chromium=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
[[ -n $chromium ]] || die 'no Chromium found: install the package chromium, or set CHROMIUM'
command -v psql >/dev/null || die 'no psql found: install the package postgresql-client'

python=$(tests/venv.sh browser)
binary=${BINARY:-$PWD/target/debug/cdc-export}
exec "$python" tests/browser.py --chromium "$chromium" --binary "$binary" "$@"
