#!/usr/bin/env bash
# The wheel and the sdist of clients/python: packaging/python.sh FOLDER. Needs what tests/venv.sh does.
set -euo pipefail
out=$(realpath "$1")
cd "$(dirname "$0")/.."
# The same bytes of the same commit.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --no-show-signature --format=%ct)}
python=$(tests/venv.sh python-build)
"$python" -m build --no-isolation --outdir "$out" clients/python
