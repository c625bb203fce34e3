#!/usr/bin/env bash
# The notes of a release: what CHANGELOG.md says of a version. packaging/notes.sh VERSION, with or without the tag's `v`.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1#v}
notes=$(awk -v head="## [$version]" 'index($0, "## [") == 1 { inside = index($0, head) == 1; next } inside' CHANGELOG.md)
[[ -n ${notes//[[:space:]]/} ]] || { echo "error: CHANGELOG.md has no section for $version" >&2; exit 1; }
printf '%s\n' "$notes"
