#!/usr/bin/env bash
# rivet-cli in its mode `full`: rivet.sh QUERY FILE, where the file's extension is the format. Needs `rivet` in PATH.
set -euo pipefail
query=$1 file=$2 format=${2##*.}
folder=$(mktemp -d -p "$PWD")
trap 'rm -rf "$folder"' EXIT
cat >"$folder/rivet.yaml" <<YAML
source:
  type: postgres
  url: "postgresql://$PGUSER:$PGPASSWORD@localhost/$PGDATABASE?host=$PGHOST"
exports:
  - name: users
    query: "$query"
    mode: full
    format: $format
    destination:
      type: local
      path: $folder/files
YAML
(cd "$folder" && rivet run -c rivet.yaml >said 2>&1) || { cat "$folder/said" >&2; exit 1; }
mv "$folder"/files/*."$format" "$file"
