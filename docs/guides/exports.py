"""A consumer of cdc-export, in the standard library alone: copy it beside your loader. README.md says why it does what it does."""

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
import uuid


class Failed(Exception):
    """A job that ended without a file."""

    def __init__(self, job):
        self.job = job
        self.code = (job["error"] or {}).get("code", job["status"])
        super().__init__(f"the export {job['jobId']} is {job['status']}: {job['error']}")


class Exports:
    def __init__(self, server, consumer, dataset="users", key=None):
        self.server, self.consumer, self.dataset = server.rstrip("/"), consumer, dataset
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def catch_up(self, format, from_the_beginning=False):
        """Has the service write what changed, or everything where changes alone don't do, and waits for that."""
        try:
            return self.run("full" if from_the_beginning else "delta", format)
        except Failed as failed:
            if failed.code != "full_export_needed":
                raise
            return self.run("full", format)

    def run(self, export_type, format):
        """An export, once it has completed."""
        # The key makes a call that is sent again the same call.
        headers = {"X-Consumer-ID": self.consumer, "Idempotency-Key": str(uuid.uuid4())}
        body = {"dataset": self.dataset, "format": format}
        job_id = self.call("POST", f"/exports/{export_type}", headers, body)["jobId"]
        while True:
            job = self.call("GET", f"/exports/{job_id}?wait=30")
            if job["status"] == "completed":
                return job
            if job["status"] in ("failed", "cancelled"):
                raise Failed(job)

    def completed(self, after=None):
        """The completed jobs after this one, in their order; no earlier than the last full export, which replaces all before."""
        jobs, cursor = [], ""
        while True:
            wanted = f"consumer={self.consumer}&dataset={self.dataset}&status=completed&limit=200"
            page = self.call("GET", f"/exports?{wanted}{cursor}")
            for job in page["items"]:
                if job["jobId"] == after:
                    return jobs[::-1]
                jobs.append(job)
                if job["exportType"] == "full":
                    return jobs[::-1]
            if not page["nextCursor"]:
                return jobs[::-1]
            cursor = f"&cursor={page['nextCursor']}"

    def fetch(self, job, folder):
        """The path of a job's file, whole and checked."""
        path = os.path.join(folder, os.path.basename(job["outputFilename"]))
        sha256 = hashlib.sha256()
        with self.open("GET", f"/exports/{job['jobId']}/download") as answer, open(path, "wb") as file:
            while chunk := answer.read(1 << 20):
                sha256.update(chunk)
                file.write(chunk)
        if sha256.hexdigest() != job["sha256"]:
            raise OSError(f"{path} has not arrived whole")
        return path

    def call(self, method, path, headers={}, body=None):
        with self.open(method, path, headers, body) as answer:
            return json.load(answer)

    def open(self, method, path, headers={}, body=None):
        """An answer. A service that is busy or restarts is asked again for a minute."""
        data = None if body is None else json.dumps(body).encode()
        headers = self.headers | headers | ({"Content-Type": "application/json"} if data else {})
        for rest in range(60, -1, -1):
            request = urllib.request.Request(self.server + path, data, headers, method=method)
            try:
                return urllib.request.urlopen(request, timeout=90)
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503) or not rest:
                    raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode()}") from None
            except OSError:
                if not rest:
                    raise
            time.sleep(1)
