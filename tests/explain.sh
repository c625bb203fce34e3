#!/usr/bin/env bash
# Makes docs/STATEMENTS.md anew: prints how Postgres runs the statements that it has, and what they read.
# DATABASE_URL names an empty database, which this fills. BINARY names another build than target/debug/cdc-export.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATABASE_URL:?}"
binary=${BINARY:-target/debug/cdc-export}
export PGOPTIONS='-c search_path=pg_catalog,cdc_export,public,pg_temp -c jit=off'
sql() { psql -XAtq -v ON_ERROR_STOP=1 "$DATABASE_URL" "$@"; }

# A file with its pieces in place of the lines that include them.
whole() { awk -v top="src/${1%%/*}" '$2 == "include" { while ((getline line < (top "/" $3)) > 0) print line; next } 1' "src/$1"; }

# Explains a file below src, with these arguments, in a transaction that is rolled back.
explain() {
    local types
    types=$(sed -n 's/^-- \$[0-9]* \([^:]*\): .*/\1/p' "src/$1" | paste -sd,)
    printf '\n== %s\n' "$1"
    sql <<<"begin; prepare statement ($types) as $(whole "$1"); explain (analyze, buffers, costs off) execute statement ($2); rollback"
}

if [[ $(sql -c "select to_regclass('exports') is null") == t ]]; then
    "$binary" migrate
    "$binary" seed --rows 100000
    "$binary" track users
    sql -f tests/explain.sql
fi
for table in exports cdc_export.lanes cdc_export.files watermarks cdc_export.change_log users; do
    printf '%s: %s rows\n' "$table" "$(sql -c "select count(*) from $table")"
done

d="'00000000-0000-0000-0000-00000000000d'" processing="'00000000-0000-0000-0000-000000000001'"
unpublished="'00000000-0000-0000-0000-000000000002'" place="'{\"folder\": {\"inode\": \"1\", \"modifiedNs\": \"1\"}}'"
explain store/jobs/insert.sql "gen_random_uuid(), 'c1', 'users', 103, 'delta', 'csv', 5, 'new', $d, now(), null, null, 'none', null, \
false, null, null, 'cdc_export', null, null"
explain store/queue/claim.sql "'{csv}', '{none}', '{users}', $d, gen_random_uuid(), 'worker', 60, now() - interval '1 minute'"
explain source/opening.sql "'public.users', 'c1', 'users', true, '', '{}', $processing, null, null, '{}'"
explain store/lease/beat.sql "$processing, $processing, 60, 50::smallint, 1000, 100000"
explain store/commit/complete.sql "$processing, $processing, 1000, 100000, 'a', 'staged', now(), now(), $d, null, 0, 0, 0, false, '', 0, null, \
'{}', 0, array[$place]::jsonb[], '{staged}', '{100000}', '{1000}', '{a}'"
explain store/files/published.sql "$unpublished, $unpublished, array[$place]::jsonb[], '{file:///f}', null"
