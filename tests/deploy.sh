#!/usr/bin/env bash
# Tests deploy/, as far as one machine can, and docs/alerts.yml: the manifests of Kubernetes by its schemas, rendered where
# there is a kubectl or a kustomize; the dashboard and the alerts by a real Prometheus that scrapes a service and a worker with the manifests'
# settings; and the unit of systemd. `cargo build` comes first; BINARY names another binary. Needs curl, what tests/venv.sh does,
# systemd-analyze, and Debian's `prometheus`, whose server listens on 127.0.0.1 only.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin"

. tests/service.sh
worker= prometheus=
trap 'for process in $prometheus $worker $service; do kill "$process" || true; done; wait; rm -rf "$work"' EXIT

python=$(tests/venv.sh deploy)

printf 'kubernetes:\n'
# Kustomize 5 is needed: earlier versions know no components, or not all of these fields.
if command -v kustomize >/dev/null && [[ $(kustomize version) == *v5.* ]]; then
    render=(kustomize build)
elif command -v kubectl >/dev/null && [[ $(kubectl version --client 2>/dev/null) == *'Kustomize Version: v5.'* ]]; then
    render=(kubectl kustomize)
else
    render=()
    echo 'not rendered: there is no kustomize 5 and no kubectl that has one'
fi
rendered=()
if ((${#render[@]})); then
    cp -r deploy/kubernetes "$work/kubernetes"
    "${render[@]}" "$work/kubernetes/example" >"$work/example.yaml"
    # With all that the example leaves to choice.
    sed -i 's/^components: \[\]$/components:/; s/^# - /- /' "$work/kubernetes/example/kustomization.yaml"
    # And with what the guide has for it.
    awk -v folder="$work/kubernetes/example" '
        /^```yaml$/ { inside = 1; text = ""; next }
        inside && /^```$/ {
            inside = 0
            list = text ~ /^apiVersion/ ? "resources" : text ~ /^  - name/ ? "configMapGenerator" : "patches"
            if (list == "resources") {
                printf "%s", text >(folder "/more.yaml")
                text = "  - more.yaml\n"
            }
            added[list] = added[list] text
        }
        inside { text = text $0 "\n" }
        FILENAME ~ /kustomization/ { print; sub(/:.*/, ""); printf "%s", added[$0] }
    ' docs/guides/kubernetes.md "$work/kubernetes/example/kustomization.yaml" >"$work/kustomization.yaml"
    mv "$work/kustomization.yaml" "$work/kubernetes/example/"
    echo 'a certificate' >"$work/kubernetes/example/ca.crt"
    "${render[@]}" "$work/kubernetes/example" >"$work/example-with-all.yaml"
    for added in cdc-export-more azure.workload.identity/use mountPath:\ /etc/postgres-ca; do
        grep -q "$added" "$work/example-with-all.yaml" || die "what the guide adds is not rendered: $added"
    done
    rendered=("$work/example.yaml" "$work/example-with-all.yaml")
fi
"$python" tests/deploy_kubernetes.py "$binary" "${rendered[@]}"

printf 'systemd:\n'
tests/deploy_systemd.sh "$binary"

printf 'alerts:\n'
promtool check rules --lint=all --lint-fatal docs/alerts.yml
promtool test rules tests/deploy_alerts.yml
for alert in $(sed -n 's/^ *- alert: //p' docs/alerts.yml); do
    grep -q "alertname=\"$alert\"" tests/deploy_alerts.yml || die "no test fires $alert"
done

printf 'dashboard:\n'
# A schedule, so that it has slots, and receivers that are not there, so that events wait for one.
cat >"$work/datasets.toml" <<'END_OF_FILE'
[[dataset]]
name = "users"
table = "users"
updated_at = "updated_at"
created_at = "created_at"
deleted = "is_deleted"

[[schedule]]
name = "often"
consumer = "scheduled"
dataset = "users"
type = "incremental"
every = "2s"

[[webhook]]
name = "nobody"
url = "http://127.0.0.1:1/"
secret_env = "NOBODY_SECRET"
allow_http = true
allow_private = true
END_OF_FILE
export_and_wait() {
    local job
    job=$(call POST "/exports/$1" | member jobId)
    [[ $(call GET "/exports/$job?wait=60" | member status) == "${2:-completed}" ]] || die "$1 is not ${2:-completed}"
    echo "$job"
}
# As in a cluster, but for addresses, and for the files, which would go to a bucket.
mapfile -t base < <(grep '^[A-Z]' deploy/kubernetes/base/settings.env)
start_service "${base[@]}" HOST=127.0.0.1 PORT=0 METRICS_PORT=0 OUTPUT_DIR="$work/output" DATASETS="$work/datasets.toml" \
    NOBODY_SECRET="whsec_$(head -c 32 /dev/urandom | base64 -w0)"
key=$(cd "$work" && "${settings[@]}" "$binary" keys create --name prometheus --scope admin 2>>"$work/log")
: >"$work/worker.log"
(cd "$work" && exec "${settings[@]}" "$binary" worker) 2>"$work/worker.log" &
worker=$!
worker_address=$(address_in "$work/worker.log" "$worker")

# The manifests' probes send no key.
for address in "$api" "$worker_address"; do
    for path in live ready; do
        curl -fsS -o "$work/health" "$address/health/$path" || die "$address/health/$path"
    done
done

# Prometheus takes no port of its own choice, so one is looked for that is free.
port=$(python3 -c 'import socket; free = socket.create_server(("127.0.0.1", 0)); print(free.getsockname()[1])')
cat >"$work/prometheus.yml" <<END_OF_FILE
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [$PWD/docs/alerts.yml]
scrape_configs:
  - job_name: cdc-export
    authorization: {credentials: $key}
    static_configs: [{targets: ["${api#http://}", "${worker_address#http://}"]}]
END_OF_FILE
first=$(date +%s)
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/prometheus" --web.listen-address="127.0.0.1:$port" \
    --log.level=warn 2>"$work/prometheus.log" &
prometheus=$!
# A rate needs two scrapes of a series, one from before what it counts.
for _ in {1..100}; do
    scraped=$(curl -fs "http://127.0.0.1:$port/api/v1/query?query=min_over_time(up\[1m\])==1" | grep -o '"instance"' | wc -l) || true
    ((scraped < 2)) || break
    kill -0 "$prometheus" || { cat "$work/prometheus.log" >&2; die 'Prometheus ended'; }
    sleep 0.2
done
((scraped == 2)) || die 'Prometheus does not scrape both'

full=$(export_and_wait full)
call POST "/exports/$full/ack" >"$work/ack"
call DELETE /users/42 >"$work/deleted"
# A deletion that a query by timestamps would miss, for the panel of late rows.
private
psql -qX -h "$socket" -U postgres cdc_export -c 'delete from users where id = 43'
# Changes that nobody captured need a full export.
export_and_wait delta >"$work/job"
(cd "$work" && "${settings[@]}" "$binary" untrack users && "${settings[@]}" "$binary" track users) >"$work/tracked" 2>&1
export_and_wait delta failed >"$work/job"
export_and_wait full >"$work/job"
call GET /metrics | promtool check metrics
KEY=$key "$python" tests/deploy_dashboard.py "http://127.0.0.1:$port" deploy/grafana/cdc-export.json "$api" "$worker_address" "$first"

# prometheus-adapter sends this query for the autoscaler, with its own series and labels.
query=$(sed -n 's/^ *metricsQuery: //p' deploy/kubernetes/components/autoscale/prometheus-adapter.yaml)
query=${query//'<<.Series>>'/cdc_export_queue_jobs}
query=${query//'<<.LabelMatchers>>'/'job="cdc-export"'}
answer=$(curl -fsS --data-urlencode "query=$query" "http://127.0.0.1:$port/api/v1/query")
[[ $answer =~ \"result\":\[\{\"metric\":\{\},\"value\":\[[0-9.]+,\"[0-9]+\"\]\}\] ]] || die "the autoscaler's metric: $query: $answer"
