#!/usr/bin/env bash
# Full exports of a table of heavy rows, 100,000 articles of 2 kB on average, against `psql \copy`, in turn.
#
#   cargo build --release --features full && benches/articles.sh [ROUNDS]
set -euo pipefail
source "$(dirname "$0")/lib.sh"
rounds=${1:-3}
start_service 0
printf '[[dataset]]\nname = "articles"\ntable = "articles"\ncapture = "none"\n' >articles.toml
sql "create table articles (id bigint primary key, title text, body text, raw_html text, metadata jsonb, tags text[], author text,
    category text, views int, published_at timestamptz, updated_at timestamptz)"
sql "insert into articles
    select n, 'Title ' || n, b.body, '<p>' || b.body || '</p>', jsonb_build_object('n', n, 'words', 40 + n % 200, 'lang', 'en'),
      array['tag' || n % 50, 'x'], 'author' || n % 1000, 'category' || n % 20, n % 10000, now() - n * interval '1 minute', now()
    from generate_series(1, 100000) n,
      lateral (select string_agg('word' || (n * m) % 9973, ' ') as body from generate_series(1, 40 + n % 200) m) b"
sql 'vacuum analyze articles'
# A start checks its datasets, so the service starts again, with the one that there is now.
kill $service; wait $service || true
DATASETS=articles.toml listen 0
machine 100000

by_copy() { copy 'select * from articles'; }
service_as() { export_and_wait full "{\"dataset\":\"articles\",\"format\":\"$1\"}"; size=$(of_answer bytes); }
turn() {
    local name=$1
    shift
    size=
    measure "$@"
    awk -v n="$name" -v w="$wall" -v u="$used" -v b="$size" 'BEGIN {printf "%-20s %.2f s, CPU %.2f s  %s\n", n, w / 1e6, u / 1e6, b}'
}
for _ in $(seq "$rounds"); do
    turn 'psql copy' by_copy
    turn 'cdc-export, csv' service_as csv
    turn 'cdc-export, parquet' service_as parquet
done
