"""The receivers of docs/guides, which take every kind of event: webhooks.py SERVER PORT SECRET DATASET.

The receiver of webhooks.md checks events by the library of Standard Webhooks. The receiver of rabbitmq.md gets them from a stand-in for pika.
"""

import contextlib
import datetime
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import types
import urllib.error
import urllib.request

from standardwebhooks import Webhook

server, port, secret, dataset = sys.argv[1:]
guides = pathlib.Path(__file__).parent.parent / "docs/guides"


def block(page):
    """Returns the only receiver of a page."""
    (receiver,) = re.findall(r"^```python\n(.*?)^```$", (guides / page).read_text(), re.MULTILINE | re.DOTALL)
    return receiver


def export(body):
    headers = {"X-Consumer-ID": "webhooks", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}/exports/full", json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request))


def events(*jobs):
    """Yields an event of every kind with the lines that a receiver prints: of each job, and of `deliveries test`."""
    one, several = (json.load(urllib.request.urlopen(f"{server}/exports/{job}")) for job in jobs)
    several["exports"].append({**several["exports"][0], "dataset": "another"})
    kinds = [("test", {})]
    for end in ("completed", "failed", "cancelled", "skipped"):
        kinds += [(f"export.{end}", one), (f"export.{end}", several)]
    for number, (kind, data) in enumerate(kinds):
        type = f"cdc-export.{kind}.v1"
        lines = [f"{type} _test {export.get('dataset')} {data.get('jobId')}" for export in data.get("exports", [data])]
        yield {"id": f"id-of-{number}", "type": type, "subject": "_test", "data": data}, lines


def post(event):
    """Posts an event as the service does. Returns the status of the answer."""
    body, now = json.dumps(event), datetime.datetime.now(datetime.UTC)
    signature = Webhook(secret).sign(event["id"], now, body)
    headers = {"webhook-id": event["id"], "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}
    return urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/", body.encode(), headers)).status


def taken_by_pika(bodies):
    """Runs the receiver of rabbitmq.md. Returns the lines that it prints."""
    acknowledged = []

    class Channel:
        def basic_consume(self, queue, told):
            self.told = told

        def start_consuming(self):
            for tag, body in enumerate(bodies):
                self.told(self, types.SimpleNamespace(delivery_tag=tag), None, body.encode())

        def basic_ack(self, tag):
            acknowledged.append(tag)

    connection = types.SimpleNamespace(channel=Channel)
    sys.modules["pika"] = types.SimpleNamespace(BlockingConnection=lambda address: connection, URLParameters=str)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block("rabbitmq.md"), "rabbitmq.md", "exec"), {"url": "amqp://localhost"})
    assert acknowledged == list(range(len(bodies))), acknowledged
    return printed.getvalue().splitlines()


receiver = block("webhooks.md")
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
    one, several = (export(body)["jobId"] for body in ({"dataset": dataset}, {"datasets": [dataset]}))
    # Events of earlier exports arrive as well.
    awaited = {one: f"{dataset}/webhooks", several: "_datasets/webhooks"}
    while awaited:
        type, subject, of, id = next(line.split() for line in listening.stdout)
        if id in awaited:
            assert [type, subject, of] == ["cdc-export.export.completed.v1", awaited.pop(id), dataset], (type, subject, of)
    sent = list(events(one, several))
    for event, lines in sent:
        assert post(event) == 204, event
        for line in lines:
            # Events of the service may come between.
            assert f"{line}\n" in listening.stdout, line
    printed = taken_by_pika([json.dumps(event) for event, _ in sent])
    assert printed == [line for _, lines in sent for line in lines], printed
    forged = {"webhook-id": "a", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
    try:
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/", b"{}", forged))
        raise SystemExit("what nobody signed has passed")
    except urllib.error.HTTPError as refused:
        assert refused.code == 401, refused
finally:
    listening.kill()
print("webhooks: the guides' receivers take every kind of event; that of webhooks.md takes what the service signs and nothing else")
