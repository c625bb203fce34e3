"""The receiver of docs/guides/webhooks.md, which checks events by the library of Standard Webhooks: webhooks.py SERVER PORT SECRET DATASET."""

import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request

server, port, secret, dataset = sys.argv[1:]
guide = pathlib.Path(__file__).parent.parent / "docs/guides/webhooks.md"
(receiver,) = re.findall(r"^```python\n(.*?)^```$", guide.read_text(), re.MULTILINE | re.DOTALL)
assert receiver.count("9000") == 1, "the guide's port"
listening = subprocess.Popen(
    [sys.executable, "-c", receiver.replace("9000", port)],
    env={**os.environ, "AIRFLOW_WEBHOOK_SECRET": secret},
    stdout=subprocess.PIPE,
    text=True,
)
# A receiver that isn't told is no reason to wait for ever.
late = threading.Timer(60, listening.kill)
late.daemon = True
late.start()
try:
    headers = {"X-Consumer-ID": "webhooks", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}/exports/full", json.dumps({"dataset": dataset}).encode(), headers)
    job = json.load(urllib.request.urlopen(request))["jobId"]
    # What was exported before is told as well.
    told = next((line.split() for line in listening.stdout if line.split()[2] == job), None)
    assert told == ["cdc-export.export.completed.v1", f"{dataset}/webhooks", job], told
    forged = {"webhook-id": "a", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
    try:
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/", b"{}", forged))
        raise SystemExit("what nobody signed has passed")
    except urllib.error.HTTPError as refused:
        assert refused.code == 401, refused
finally:
    listening.kill()
print("webhooks: the guide's receiver, with the library of Standard Webhooks, takes what the service signs and nothing else")
