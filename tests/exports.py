"""The client of formats.py and decimals.py: an ad-hoc export of the service that the first argument names."""

import json
import sys
import urllib.request

BASE = sys.argv[1]


def call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return answer.read()


def export(options):
    """The bytes of an ad-hoc full export."""
    job = json.loads(call("/exports", options))["jobId"]
    while (status := json.loads(call(f"/exports/{job}?wait=60")))["status"] in ("pending", "processing"):
        pass
    assert status["status"] == "completed", status
    return call(f"/exports/{job}/download")
