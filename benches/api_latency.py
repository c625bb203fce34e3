"""Measures the time of GETs of a job while two full exports run: PORT SECONDS. Python's own library only."""

import http.client
import json
import sys
import threading
import time

port, seconds = int(sys.argv[1]), float(sys.argv[2])
end = time.monotonic() + seconds


def call(connection, method, path, consumer="latency"):
    connection.request(method, path, headers={"X-Consumer-ID": consumer})
    return json.loads(connection.getresponse().read())


def export(consumer):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    while time.monotonic() < end:
        job = call(connection, "POST", "/exports/full", consumer)["jobId"]
        while call(connection, "GET", f"/exports/{job}?wait=60")["status"] != "completed":
            pass


exporters = [threading.Thread(target=export, args=(f"latency-{n}",)) for n in range(2)]
for exporter in exporters:
    exporter.start()
connection = http.client.HTTPConnection("127.0.0.1", port)
job = call(connection, "GET", "/exports?limit=1")["items"][0]["jobId"]
took = []
while time.monotonic() < end:
    began = time.perf_counter()
    call(connection, "GET", f"/exports/{job}")
    took.append((time.perf_counter() - began) * 1000)
    time.sleep(0.005)
for exporter in exporters:
    exporter.join()
took.sort()
print(
    f"GET /exports/{{jobId}} while 2 exports run, ms: p50 {took[len(took) // 2]:.1f}, "
    f"p99 {took[len(took) * 99 // 100]:.1f}, most {took[-1]:.1f} of {len(took)}"
)
