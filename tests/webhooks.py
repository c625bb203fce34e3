"""A receiver of webhooks as docs/guides/webhooks.md has it, which checks events by the library of Standard Webhooks: webhooks.py SERVER PORT SECRET DATASET."""

import http.server
import json
import queue
import sys
import threading
import time
import urllib.request

from standardwebhooks import Webhook, WebhookVerificationError

server, port, secret, dataset = sys.argv[1:]
heard = queue.Queue()


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        heard.put((body, dict(self.headers.items())))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


listening = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Receiver)
threading.Thread(target=listening.serve_forever, daemon=True).start()
headers = {"X-Consumer-ID": "webhooks", "Content-Type": "application/json"}
request = urllib.request.Request(f"{server}/exports/full", json.dumps({"dataset": dataset}).encode(), headers)
job = json.load(urllib.request.urlopen(request))["jobId"]
end = time.monotonic() + 60
while True:
    # What was exported before is told as well.
    body, headers = heard.get(timeout=max(0.1, end - time.monotonic()))
    event = Webhook(secret).verify(body, headers)
    if event["data"]["jobId"] == job:
        break
assert event["specversion"] == "1.0" and event["type"] == "cdc-export.export.completed.v1", event
assert event["subject"] == f"{dataset}/webhooks" and headers["webhook-id"] == event["id"], (event, headers)
for changed in (body + b" ", body.replace(b"completed", b"cancelled", 1)):
    try:
        Webhook(secret).verify(changed, headers)
    except WebhookVerificationError:
        continue
    raise SystemExit("a changed body has passed")
print("webhooks: the library of Standard Webhooks takes the signature, and only for this body")
