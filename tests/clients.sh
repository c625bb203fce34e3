#!/usr/bin/env bash
# A client that openapi-python-client generates from /openapi.json. It makes an export of a service, and a call that the service refuses.
# `cargo build` comes first. Needs what tests/venv.sh does.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/service.sh

python=$(tests/venv.sh clients)

start_service
cp tests/clients.py "$work/"
cd "$work"
curl -fsS -m 20 "$api/openapi.json" -o openapi.json

PATH="${python%/*}:$PATH" openapi-python-client generate --path openapi.json --meta none --output-path client >generated 2>&1 ||
    { cat generated; exit 1; }
! grep -qi warning generated || { cat generated; die 'the generator could not make all of the client'; }

"$python" clients.py "$api"
