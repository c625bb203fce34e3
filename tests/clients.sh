#!/usr/bin/env bash
# Clients that others' generators make of /openapi.json: TypeScript ones by openapi-typescript and by hey-api, a Python one by
# openapi-python-client. Each is compiled, and makes an export of a service and a call that the service refuses. `cargo build` comes first.
#
# Needs Node.js with npm, and what tests/venv.sh does; fetches packages from npm and PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/service.sh

python=$(tests/venv.sh clients)
modules=$(tests/npm.sh clients)

start_service
cp tests/clients/*.ts tests/clients/tsconfig.json tests/clients/clients.py "$work/"
ln -s "$modules/node_modules" "$work/node_modules"
cd "$work"
curl -fsS -m 20 "$api/openapi.json" -o openapi.json

node_modules/.bin/openapi-typescript openapi.json --output schema.d.ts >generated 2>&1 || { cat generated; exit 1; }
node_modules/.bin/openapi-ts --input openapi.json --output hey >generated 2>&1 || { cat generated; exit 1; }
PATH="${python%/*}:$PATH" openapi-python-client generate --path openapi.json --meta none --output-path client >generated 2>&1 ||
    { cat generated; exit 1; }
! grep -qi warning generated || { cat generated; die 'a generator could not make all of the client'; }

node_modules/.bin/tsc --project .
node built/openapi-typescript.js "$api"
node built/hey-api.js "$api"
"$python" clients.py "$api"
