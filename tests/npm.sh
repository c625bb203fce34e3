#!/usr/bin/env bash
# npm's packages of tests/NAME/package.json under target/, installed where they aren't there yet: tests/npm.sh NAME prints the folder that has
# node_modules. Needs Node.js with npm, and a package index or a cache of its packages.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v npm >/dev/null || { echo 'error: no npm found: install the packages nodejs and npm' >&2; exit 1; }
modules=$PWD/target/$1-npm
mkdir -p "$modules"
if ! cmp -s "tests/$1/package.json" "$modules/installed.json"; then
    cp "tests/$1/package.json" "$modules/"
    (cd "$modules" && timeout 600 npm install --silent --no-audit --no-fund --no-package-lock >&2)
    cp "tests/$1/package.json" "$modules/installed.json"
fi
echo "$modules"
