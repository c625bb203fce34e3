#!/usr/bin/env bash
# Runs the containers on a real engine, from the images' build to `down`: README's tour against the published port, the commands of
# docs/guides/docker.md, restarts and a kill, workers beside the service, the owner of the files, and ten tests of the suite in their container.
#
#   tests/docker.sh              in a copy of this clone that belongs to the user who runs it
#   tests/docker.sh 1000:1000    in a copy that belongs to that uid and gid; only root can give files away
#   SUITE=1 tests/docker.sh      with the whole suite instead of ten tests
#   PORT=8090 tests/docker.sh    if 8080 is taken
#   COMPOSE='docker compose' tests/docker.sh
#   BY_TAG=1 tests/docker.sh     with base images of the engine's own, which have the tags and no digests
#
# Needs the engine at DOCKER_HOST, docker-compose, curl, jq and python3. Afterwards the copy, its containers, volume and image tags are gone;
# the layers stay in the engine's cache.
set -euo pipefail
owner=${1:-$(id -u):$(id -g)}
export PORT=${PORT:-8080} COMPOSE_PROJECT_NAME=cdc-export-test-$$ SEED_ROWS=${SEED_ROWS:-100000}
read -ra compose <<<"${COMPOSE:-docker-compose}"
url=http://127.0.0.1:$PORT

name=$COMPOSE_PROJECT_NAME
step() { printf '\n==> %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
same() { [[ $2 == "$3" ]] || die "$1: $2, not $3"; }
field() { grep -o "\"$1\":[^,}]*" | head -1 | cut -d: -f2- | tr -d '"'; }
running() { "${compose[@]}" ps -q "$1"; }
call() { curl -fsS "$@"; }

# Prints the job's id.
submit() { call -X POST -H "X-Consumer-ID: $2" "$url/exports/$1" | field jobId; }
# Waits for the job's end, and prints it.
ended() {
    local job
    job=$(call "$url/exports/$1?wait=60")
    same "job $1" "$(field status <<<"$job")" completed
    printf '%s\n' "$job"
}
# block FILE BEGINNING: prints a block of commands of a page, with the port, the project and the compose program of this run, and without a
# terminal.
block() {
    python3 tests/commands.py "$@" | sed -e "s/localhost:8080/localhost:$PORT/g" -e "s/^docker-compose/${compose[*]}/" -e 's/ up --build/& -d/' \
        -e 's/ exec app/ exec -T app/' -e 's/ run --rm/& -T/'
}
# Waits until the service answers that it is ready.
ready() {
    for _ in $(seq 120); do
        if call "$url/health/ready" >/dev/null 2>&1; then return; fi
        sleep 0.5
    done
    "${compose[@]}" logs --tail 20 app
    die 'the service does not get ready'
}

clone=$(mktemp -d)
chmod 755 "$clone"
clean_up() {
    local code=$?
    cd "$clone"
    [[ $code == 0 ]] || "${compose[@]}" logs --tail 40 || true
    docker rm -f "$name-own" >/dev/null 2>&1 || true
    "${compose[@]}" down -v --rmi local --remove-orphans --timeout 5 >/dev/null 2>&1 || true
    docker image rm "$name-own" >/dev/null 2>&1 || true
    cd / && rm -rf "$clone"
}
trap clean_up EXIT

step "a copy of the clone, of $owner"
cd "$(dirname "$0")/.."
git ls-files -co --exclude-standard -z | tar -c --null -T - | tar -x -C "$clone"
# Not the sources: to older builders another owner is another file, and they would build all of it again.
if [[ $owner != "$(id -u):$(id -g)" ]]; then chown -R "$owner" "$clone/output"; fi
cd "$clone"
[[ -z ${BY_TAG:-} ]] || sed -i 's/@sha256:[0-9a-f]*//' Dockerfile docker-compose.yml
# A setting of the clone is not one of the containers.
printf 'DATABASE_URL=postgres://nobody@127.0.0.1:1/nowhere\nOUTPUT_DIR=/nowhere\n' >.env

step 'up --build'
begun=$SECONDS
"${compose[@]}" up --build -d
ready
echo "ready after $((SECONDS - begun)) s"
same services "$("${compose[@]}" ps -q | wc -l)" 2
docker image inspect -f 'image: {{.Size}} bytes' "$(docker inspect -f '{{.Image}}' "$(running app)")"

step 'who runs'
docker top "$(running app)" -eo pid,uid,args
uid=${owner%:*}
[[ $uid != 0 ]] || uid=65532
same "the service's user" "$(docker top "$(running app)" -eo pid,uid,args | awk '$3 ~ /libexec.cdc-export$/ {print $2}')" "$uid"
pid=$(docker top "$(running app)" -eo pid,args | awk '$2 ~ /libexec.cdc-export$/ {print $1}')
same 'its capabilities' "$(awk '/^Cap(Prm|Eff|Bnd|Amb)/ {sum = sum $2} END {print sum}' "/proc/$pid/status" | tr -d 0)" ''
same 'its new privileges' "$(awk '/^NoNewPrivs/ {print $2}' "/proc/$pid/status")" 1
same 'its role' "$("${compose[@]}" exec -T db psql -U postgres -d cdc_export -Atc "
    select string_agg(distinct r.rolname || ' ' || r.rolsuper, ',') from pg_stat_activity a join pg_roles r on r.rolname = a.usename
    where a.application_name like 'cdc-export%'")" 'exporter false'
health() { docker inspect -f '{{.State.Health.Status}}' "$(running app)"; }
for _ in $(seq 60); do [[ $(health) == starting ]] || break; sleep 1; done
same 'health check' "$(health)" healthy

same "the image's user" "$(docker image inspect -f '{{.Config.User}}' "$(docker inspect -f '{{.Image}}' "$(running app)")")" 65532:65532
same "the image's label" "$(docker image inspect -f '{{index .Config.Labels "org.opencontainers.image.title"}}' \
    "$(docker inspect -f '{{.Image}}' "$(running app)")")" cdc-export

step "README's tour"
for beginning in "curl -s -w '\n' -X POST" 'curl -s -o /dev/null -X DELETE' "curl -s -w '\n' \"localhost"; do
    block README.md "$beginning" >tour
    # shellcheck disable=SC1091
    . ./tour
done
rows=$(ended "$(field jobId <full.json)" | field rowsExported)
same lines "$(wc -l <"output/$(field outputFilename <full.json)")" $((rows + 1))
delta=output/$(field outputFilename <delta.json)
same 'rows of the delta' "$(tail -n +2 "$delta" | cut -d, -f1,2)" DELETE,42
cmp missed.csv "$delta"

step 'a page elsewhere'
refused() { same "$*" "$(curl -s -o /dev/null -w '%{http_code}' "$@")" 403; }
refused -X DELETE -H 'Origin: https://evil.example' "$url/users/7"
refused -H 'Host: rebound.example' "$url/exports"
refused -H 'X-Forwarded-For: 203.0.113.7' "$url/exports"
same 'by its name' "$(curl -s -o /dev/null -w '%{http_code}' -H 'Host: app:8080' "$url/exports")" 200

step 'whose files'
stat -c '%u:%g %A %n' output output/.cdc-export-store output/*.csv
same "the folder's owner" "$(stat -c %u output)" "${owner%:*}"
for written in output/.cdc-export-store output/*.csv; do
    same "$written" "$(stat -c '%u %a' "$written")" "$uid 644"
done
"${compose[@]}" exec -T app cdc-export export full --consumer by-exec
same 'a file by exec' "$(stat -c %u output/full_by-exec_*.csv)" "$uid"

step 'restart'
begun=$SECONDS
"${compose[@]}" restart app
echo "restarted in $((SECONDS - begun)) s"
ready
same 'the delta since' "$(ended "$(submit delta warehouse)" | field rowsExported)" 0

step 'kill -9 in the middle of an export'
restarts() { docker inspect -f '{{.RestartCount}}' "$(running app)"; }
before=$(restarts)
"${compose[@]}" exec -T -u "$uid" app sh -c '
    echo waiting
    until ls /output/.*.part >/dev/null 2>&1; do :; done
    for process in /proc/[0-9]*; do
        # Not a health check of this moment: nobody here is its parent.
        if [ "$(cat "$process/comm")" = cdc-export ] && grep -q "^PPid:.1$" "$process/status"; then
            kill -9 "${process#/proc/}"
            exit
        fi
    done' >killer &
until grep -q waiting killer; do sleep 0.1; done
jobs=()
# The one that the kill meets may not get its answer.
for n in 1 2 3 4; do jobs+=("$(submit full "killed-$n" || true)"); done
while [[ $(restarts) == "$before" ]]; do sleep 0.2; done
ready
attempts=()
for job in "${jobs[@]}"; do
    [[ -n $job ]] || continue
    again=$(ended "$job")
    same "rows of $job" "$(field rowsExported <<<"$again")" $((rows - 1))
    attempts+=("$(field attempt <<<"$again")")
done
echo "attempts: ${attempts[*]}"
[[ ${attempts[*]} == *2* ]] || die 'the kill met no export'

step 'two workers beside the service'
block docs/guides/docker.md 'docker-compose up --build --scale' >guide
eval "$(sed -n 1p guide)"
ready
eval "$(sed -n 2p guide)"
same workers "$(running worker | wc -l)" 2
did() { docker logs "$1" 2>&1 | grep -c '"event":"export_completed"' || true; }
workers_did() { local sum=0 id; for id in $(running worker); do sum=$((sum + $(did "$id"))); done; echo "$sum"; }
for container in $(running worker); do
    for _ in $(seq 60); do docker logs "$container" 2>&1 | grep -q '"event":"working"' && break; sleep 0.5; done
done
jobs=()
for n in $(seq 24); do jobs+=("$(submit full "shared-$n")"); done
for job in "${jobs[@]}"; do
    same "rows of $job" "$(ended "$job" | field rowsExported)" $((rows - 1))
done
same 'contents' "$(sha256sum output/full_shared-*.csv | cut -d' ' -f1 | sort -u | wc -l)" 1
same 'owners' "$(stat -c %u output/*.csv | sort -u)" "$uid"
for container in $(running app) $(running worker); do
    echo "$(docker inspect -f '{{.Name}}' "$container"): $(did "$container")"
done
[[ $(workers_did) -gt 0 ]] || die 'the workers did nothing'

eval "$(sed -n 3p guide)"

step 'stop'
submit full stopped >/dev/null
app=$(running app) begun=$SECONDS
"${compose[@]}" stop app worker
echo "stopped in $((SECONDS - begun)) s"
same 'exit code' "$(docker inspect -f '{{.State.ExitCode}}' "$app")" 0

step 'down, and up again: the data stay'
"${compose[@]}" down
"${compose[@]}" up -d
ready
same services "$("${compose[@]}" ps -q | wc -l)" 2
call -H 'X-Consumer-ID: warehouse' "$url/exports/watermark" >/dev/null
ended "$("${compose[@]}" exec -T app cdc-export export delta --consumer warehouse --json | field jobId)" >/dev/null
same 'hidden leftovers' "$(find output -name '.*.part' | wc -l)" 0

step 'beside a database of your own'
"${compose[@]}" stop app
"${compose[@]}" exec -T db psql -q -U postgres -d postgres -c 'create database shop owner exporter'
"${compose[@]}" exec -T db psql -q -U postgres -d shop -c 'set role exporter' \
    -c 'create table orders as select n as id, n * 1.5 as total from generate_series(1, 10) n' -c 'alter table orders add primary key (id)'
# The guide's container, of another name, in the network of this database.
block docs/guides/docker.md 'docker build' | sed -e "s/-t cdc-export /-t $name-own /; s/^    cdc-export$/    $name-own/" \
    -e "s/--name exports/--name $name-own --network ${name}_default/; s/exec exports/exec $name-own/" -e "s/:8080:8080/:$PORT:8080/" \
    -e 's#owner:secret@db.example.com/#exporter:exporter@db/#' >guide-own
eval "$(sed -n 1p guide-own)"
mkdir own
printf '[[dataset]]\nname = "orders"\ntable = "orders"\n' >own/datasets.toml
(cd own && eval "$(sed 1d ../guide-own)") | tee said
key=$(grep -m1 '^cdcx_' said)
ready
own=$(call -X POST -H "Authorization: Bearer $key" -H 'X-Consumer-ID: warehouse' "$url/exports/full" | field jobId)
call -H "Authorization: Bearer $key" "$url/exports/$own?wait=60" | grep -q '"rowsExported":10' || die 'its export'
docker rm -f "$name-own" >/dev/null

step 'the suite'
if [[ -n ${SUITE:-} ]]; then
    eval "$(sed -n 4p guide)"
else
    # Under base images without digests that test has nothing to find.
    eval "$(sed -n 4p guide) --test suite -- containers:: docs:: local:: ${BY_TAG:+--skip every_base_image}" | tee said
    passed=$(sed -n 's/^test result: ok. \([0-9]*\) passed.*/\1/p' said)
    ((${passed:-0} >= 10)) || die "fewer than ten tests passed: ${passed:-none}"
fi

step 'down'
eval "$(sed -n 5p guide)"
same 'containers that are left' "$("${compose[@]}" ps -q | wc -l)" 0

step 'All passed'
