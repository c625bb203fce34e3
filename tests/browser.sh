#!/usr/bin/env bash
# The page in a real browser: tests/browser.py drives Chromium against the debug binary on a private Postgres of its own.
#
#   tests/browser.sh                   all of it
#   tests/browser.sh tour narrow       what has one of these words in its name
#   tests/browser.sh --pictures docs   no tests, but docs/page.png and its siblings anew
#   CHROMIUM=/path/to/chrome tests/browser.sh
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

chromium=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
[[ -n $chromium ]] || die 'no Chromium found: install the package chromium, or set CHROMIUM'
command -v psql >/dev/null || die 'no psql found: install the package postgresql-client'

# Whoever drives the browser, and who looks for what keeps people out. Pinned: a new one may find more.
pins='playwright==1.65.2 axe-playwright-python==0.1.8'
venv=target/browser
if [[ $(cat "$venv/pins" 2>/dev/null) != "$pins" ]]; then
    rm -rf "$venv"
    python3 -m venv "$venv" || die 'no venv can be made: install the package python3-venv'
    # shellcheck disable=SC2086
    timeout 600 "$venv/bin/pip" install --quiet --disable-pip-version-check $pins
    printf '%s\n' "$pins" >"$venv/pins"
fi

cargo build --locked --quiet
exec "$venv/bin/python" tests/browser.py --chromium "$chromium" --binary "$PWD/target/debug/cdc-export" "$@"
