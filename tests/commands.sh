#!/usr/bin/env bash
# Runs the blocks of commands in docs/ that no other check runs, as a reader would paste them, on a service with a private Postgres. A command
# that goes on forever runs for some seconds. tests/commands.toml says which blocks these are: those of the step `command-blocks`.
#
#   tests/commands.sh               with target/debug/cdc-export
#   BINARY=… tests/commands.sh      with another build
#
# Needs psql, curl, jq and python3.
set -euo pipefail
cd "$(dirname "$0")/.."
clone=$PWD
. tests/service.sh
ended() {
    local status=$?
    [[ -z $service ]] || kill "$service" || true
    wait
    rm -rf "$work"
    exit $status
}
trap ended EXIT

# A webhook whose receiver is never there.
cat >"$work/datasets.toml" <<'END_OF_FILE'
[[dataset]]
name = "users"
table = "users"
updated_at = "updated_at"
created_at = "created_at"
deleted = "is_deleted"

[[webhook]]
name = "airflow"
url = "http://127.0.0.1:1/"
secret_env = "AIRFLOW_WEBHOOK_SECRET"
allow_http = true
allow_private = true
END_OF_FILE

# In place of the program: a command that goes on forever has to go on for ten seconds.
mkdir "$work/bin"
cat >"$work/bin/cdc-export" <<END_OF_FILE
#!/usr/bin/env bash
case " \$* " in
    *' --watch '* | *' --every '* | ' serve ' | ' worker ' | '  ')
        timeout 10 "$(realpath "$binary")" "\$@"
        [[ \$? == 124 ]]
        ;;
    *) exec "$(realpath "$binary")" "\$@" ;;
esac
END_OF_FILE
chmod +x "$work/bin/cdc-export"
PATH=$work/bin:$PATH
cd "$work"

# block PAGE BEGINNING [EXPRESSION…]: runs a block in this shell, after sed has replaced its addresses by those that are here.
block() {
    local page=$1 beginning=$2 expression expressions=(-e "s#localhost:8080#${api#http://}#g")
    for expression in "${@:3}"; do expressions+=(-e "$expression"); done
    printf '==> %s: %s\n' "$page" "$beginning"
    python3 "$clone/tests/commands.py" "$page" "$beginning" | sed "${expressions[@]}" >block
    # shellcheck disable=SC1091
    . ./block >out
    cat out
}
shows() { grep -q -- "$1" out || die "the block does not print $1"; }
api=

# A service on a private Postgres, with a file that has a webhook.
block docs/guides/webhooks.md 'export AIRFLOW_WEBHOOK_SECRET'
start_service DATASETS="$work/datasets.toml" AIRFLOW_WEBHOOK_SECRET="$AIRFLOW_WEBHOOK_SECRET" MANIFESTS=on
export DATASETS=$work/datasets.toml
job=$(curl -fsS -X POST -H 'X-Consumer-ID: search' -H 'X-Request-Id: my-request-1' "$api/exports/full" | member jobId)
curl -fsS -o job "$api/exports/$job?wait=60"

# Nobody listens at the webhook's address.
block docs/guides/webhooks.md 'cdc-export deliveries test' 's/$/ 2>\&1 || test $? = 1/'
shows 'airflow: connection refused'
block docs/guides/operating.md 'cdc-export status --watch'
shows '"status":"ok"'
cp log service.log
block docs/guides/operating.md "jq 'select"
shows '"event": "export_submitted"'
block docs/guides/operating.md 'jq -c'
shows '"action":"export"'
block docs/guides/operating.md 'curl -s "localhost:8080/deliveries' 's/status=dead/status=pending/'
shows '"status":"pending"'
delivery=$(curl -fsS "$api/deliveries?status=pending" | jq -r '.items[0].deliveryId')
block docs/guides/webhooks.md 'curl "localhost:8080/deliveries' "s/01a1f83b-[0-9a-f-]*/$delivery/"
shows '"status":"pending"'
server=$api
block docs/API.md curl
shows '"acknowledged":true'
shows '"code":"already_ended"'
cp -r output copy
block docs/guides/verify.md 'cdc-export verify' 's#s3://acme-exports/shop#./output#' 's#/mnt/copy-of-the-exports#./copy#'
shows '^whole: 1 lane'
block docs/POSTGRES.md data=./data '$s/$/ -c "select count(*) from users"/'
shows '^ *200$'
block docs/COMMANDS.md 'cdc-export export delta'
block docs/COMMANDS.md 'cdc-export pull --consumer search'
shows '^./inbox/full_'

# Somebody's database.
private
as_owner() { psql -qAt -v ON_ERROR_STOP=1 -h "$socket" -U postgres "$@"; }
as_owner cdc_export -c 'create database shop' -c 'create database copy'
as_owner shop -c 'create schema sales' \
    -c "create table sales.orders as select n as id, n * 1.5 as total, now() as modified_at from generate_series(1, 20) n" \
    -c 'alter table sales.orders add primary key (id)'
at() { printf 'postgres://postgres@localhost/%s?host=%s' "$1" "$socket"; }
block docs/COMMANDS.md 'cdc-export apply' "s#postgres://loader@warehouse/shop#'$(at copy)'#" 's/--dataset orders/--dataset users/'
[[ $(as_owner copy -c 'select count(*) from users') -gt 100 ]] || die 'apply has made no copy'
as_owner copy -c 'drop table users' -c 'delete from cdc_apply.positions'
block docs/COMMANDS.md 'cdc-export pull --consumer lake' "s#postgres://loader@warehouse/shop#'$(at copy)'#"
shows '^./lake/users/delta_'
[[ $(as_owner copy -c 'select count(*) from users') -gt 100 ]] || die 'apply of all datasets has made no copy'
(
    mkdir own exports
    cd own
    export PORT=0
    block docs/DATASETS.md 'export DATABASE_URL' "s#postgres://owner:secret@localhost/shop#'$(at shop)'#"
    block docs/guides/replicas.md 'export DATABASE_URL' "s#postgres://exporter:secret@localhost/shop#'$(at shop)'#" \
        "s#/srv/exports#$work/exports#" 's/METRICS_PORT=9101/METRICS_PORT=0/' '$a wait %1 && wait %2'
    block docs/guides/traces.md OTEL_EXPORTER_OTLP_ENDPOINT
)

# Keys at last: from the first one on the service wants one.
block docs/SECURITY.md 'cdc-export keys create --name search ' 's/^curl.*//'
key=$(cat out)
block docs/SECURITY.md 'cdc-export keys create --name search ' 's/^cdc-export.*//' "s#cdcx_5f0c7a91be24_9d1f…#$key#" \
    "s#https://exports.example.com#$api#"
shows '"status":"started"'
export CDC_EXPORT_KEY=$key
block docs/guides/docker.md 'curl -X POST -H "Authorization' 's/warehouse/search/'
shows '"status":"started"'
block docs/SECURITY.md 'cdc-export keys create --name search-2'
shows ' (search) is revoked'
printf '==> the blocks run\n'
