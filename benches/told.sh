#!/usr/bin/env bash
# Measures what an event costs an export: an incremental of three rows, from its request to its end, of a consumer of whom nobody
# hears, of one with a webhook, and of one whose calls are traced, in turns at one process. Medians in milliseconds.
#
#   cargo build --release && benches/told.sh [ROUNDS]
#
# Needs Linux, psql, python3, and a Postgres. Uses scratch folders for everything.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
rounds=${1:-500}

# The receiver of the events accepts everything.
told=$(mktemp -d)
python3 -c '
import http.server
class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.serve_forever()' >"$told/port" & receiver=$!
trap 'kill $receiver; rm -rf "$told"' EXIT
until [[ -s $told/port ]]; do kill -0 $receiver; sleep 0.1; done
address=http://127.0.0.1:$(<"$told/port")
cat >"$told/datasets.toml" <<END
[[dataset]]
name = "users"
table = "users"
updated_at = "updated_at"
created_at = "created_at"
deleted = "is_deleted"

[[webhook]]
name = "told"
url = "$address/"
secret_env = "TOLD_SECRET"
consumers = ["webhook"]
allow_http = true
allow_private = true
END
TOLD_SECRET=whsec_$(head -c 32 /dev/urandom | base64 -w0)
# Only calls that ask for it are traced.
export DATASETS=$told/datasets.toml TOLD_SECRET OTEL_EXPORTER_OTLP_ENDPOINT=$address \
    OTEL_TRACES_SAMPLER=parentbased_traceidratio OTEL_TRACES_SAMPLER_ARG=0
start_service 2000
trap 'kill $service $receiver; wait || true; rm -rf "$dir" "$told"' EXIT
machine 2000

names=(nobody webhook traces)
# once NAME: the time of one export, appended to what is known of it.
once() {
    consumer=$1 headers=
    [[ $1 != traces ]] || headers=$'traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n'
    timed "times.$1" export_and_wait incremental
}
for name in "${names[@]}"; do
    consumer=$name
    export_and_wait full
    for _ in {1..20}; do once "$name"; done
    : >"times.$name"
done
for round in $(seq "$rounds"); do
    sql 'update users set updated_at = now() where id in (7, 8, 9)'
    # Each is as often the first one behind the update.
    for i in "${!names[@]}"; do once "${names[(round + i) % ${#names[@]}]}"; done
done
for name in "${names[@]}"; do printf '%-8s %s\n' "$name" "$(median "times.$name")"; done
sql "select count(*) || ' exports told to the webhook, ' ||
       (select count(*) from cdc_export.jobs where traceparent like '%-01') || ' traced' from cdc_export.deliveries where delivered_at is not null"
