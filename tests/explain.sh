#!/usr/bin/env bash
# Prints, as Markdown, what the hottest statements are for, and how Postgres runs them.
# DATABASE_URL names an empty database, which this fills. BINARY names another build than target/debug/cdc-export.
#
#   DATABASE_URL=postgres://… tests/explain.sh >statements.md
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATABASE_URL:?}"
binary=${BINARY:-target/debug/cdc-export}
export PGOPTIONS='-c search_path=pg_catalog,cdc_export,public,pg_temp -c jit=off'
sql() { psql -XAtq -v ON_ERROR_STOP=1 "$DATABASE_URL" "$@"; }

# The path of a statement's file: those of `source` are in the crate that captures changes.
path() {
    case $1 in
        source/*) printf 'crates/cdc-capture/src/%s' "${1#source/}" ;;
        *) printf 'src/%s' "$1" ;;
    esac
}

# A file with its pieces in place of the lines that include them. A piece may include another one, several times.
whole() {
    awk -v top="$(path "${1%%/*}/")" '
        function put(file,   line) {
            while ((getline line < file) > 0) texts[file] = texts[file] line "\n"
            close(file)
            emit(texts[file])
        }
        function emit(text,   lines, count, at, words) {
            count = split(text, lines, "\n")
            for (at = 1; at < count; at++)
                if (split(lines[at], words, " ") && words[1] == "--" && words[2] == "include") {
                    texts[top words[3]] = ""
                    put(top words[3])
                } else print lines[at]
        }
        BEGIN { put(ARGV[1]) }' "$(path "$1")"
}

# Explains a statement, with these arguments, in a transaction that is rolled back. The first run only fills the caches.
explain() {
    local types explain file
    file=$(path "$1")
    types=$(sed -n 's/^-- \$[0-9]* \([^:]*\): .*/\1/p' "$file" | paste -sd,)
    explain="begin; explain (analyze, buffers, costs off, timing off) execute statement ($2); rollback;"
    printf '\n## `%s`\n\n%s\n\nFile: %s\n\n```\n' "$(sed -n '1s/-- //p' "$file")" "$3" "$file"
    printf '%s\n' "prepare statement ($types) as $(whole "$1");" '\o /dev/null' "$explain" '\o' "$explain" | sql | cut -c 1-160
    echo '```'
}

# Prints of a long plan the node that returns the rows, that of each CTE, and the totals.
top_nodes() {
    awk '{ match($0, /^ */) }
        RLENGTH < 4 || RLENGTH == 4 && $1 == "->" { print; node = RLENGTH == 4; next }
        node && RLENGTH == 10 && $1 == "Buffers:" { print; node = 0 }'
}

if [[ $(sql -c "select to_regclass('exports') is null") == t ]]; then
    "$binary" migrate >&2
    "$binary" seed --rows 100000 >&2
    "$binary" track users >&2
    sql -f tests/explain.sql
fi

cat <<'MARKDOWN'
# The hottest statements

`tests/explain.sh` runs each statement by `explain (analyze, buffers)`. The head of a statement's file lists its parameters. A line
`-- include NAME` stands for the file of that name, which has SQL that several statements share.

MARKDOWN
printf 'Postgres %s, with these tables:\n\n| table | rows |\n|---|---|\n' "$(sql -c 'show server_version_num' | cut -c 1-2)"
for table in cdc_export.jobs cdc_export.exports cdc_export.lanes cdc_export.files watermarks cdc_export.change_log users; do
    printf '| `%s` | %s |\n' "$table" "$(sql -c "select to_char(count(*), 'FM999,999') from $table")"
done

d="'00000000-0000-0000-0000-00000000000d'" processing="'00000000-0000-0000-0000-000000000001'"
unpublished="'00000000-0000-0000-0000-000000000002'" place="'{\"folder\": {\"inode\": \"1\", \"modifiedNs\": \"1\"}}'"
explain store/jobs/insert.sql "gen_random_uuid(), 'c1', 'delta', null, 1, 'csv', 'none', null, null, null, false, null, null, null, null, 5,
now(), $d, now(), 'cdc_export', '{orders}', '{1}', '{delta}', '{new}', '.csv', '{false}', '{null}', '{null}'" \
    'Makes a job with its exports, and notifies the workers. It runs once for each request that is accepted.'
explain store/queue/claim.sql "'{csv}', '{users}', $d, '{}', gen_random_uuid(), 'worker', 60, null" \
    'Claims the ready job of a free lane whose turn it is. A worker runs it when it is woken, and after each of its jobs if others wait.'
explain source/opening.sql "'{public.users}', 'c3', '{users}', '{true}', array[''], array['{}']::jsonb[], '{false}', '{false}',
array['{}']::jsonb[]" \
    'Exports the snapshot, and reads the position and the word of the guard. It runs once for each attempt. The plan has its top nodes only.' | top_nodes
explain store/lease/beat.sql "$processing, $processing, 60, 50::smallint, 1000, 100000, 'users', null" \
    'Extends the lease of a running attempt, several times in each lease.'
explain store/commit/commit.sql "$processing, $processing, '{users}', '{1000}', '{100000}', '{a}', '{staged}', array[now()], array[now()],
array['{}']::jsonb[], '{\"\"}', '{null}', '{null}', '{null}', '{null}', '{null}', $d, '{users}', '{1}', '{staged}', array[$place]::jsonb[],
'{100000}', '{1000}', '{a}'" \
    'Completes a job and records its files, in the transaction that moves the positions. It runs once for each job.'
explain store/files/published.sql "$unpublished, 'users', 'f', array[$place]::jsonb[], '{file:///f}', null" \
    'Records that the files have their final names, and numbers the export in its lane. It runs once for each export.'
