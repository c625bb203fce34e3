"""A consumer of cdc-export, in the standard library alone: copy it beside your loader. loading.md says why it does what it does."""

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


class Gap(Exception):
    """Changes that no file at hand has."""


class Exports:
    def __init__(self, server, consumer, format="csv", dataset="users", key=None):
        self.server, self.consumer, self.format, self.dataset = server.rstrip("/"), consumer, format, dataset
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def catch_up(self, after=None):
        """Has the service write what changed, and gives the completed jobs after this one, in their order. Where changes alone don't
        do, they begin with a full export, which replaces all before."""
        try:
            self.run("full" if after is None else "delta")
            return self.completed(after)
        except Failed as failed:
            if failed.code != "full_export_needed":
                raise
        except Gap:
            pass
        self.run("full")
        return self.completed()

    def run(self, export_type):
        """An export, once it has completed."""
        # The key makes a call that is sent again the same call.
        headers = {"X-Consumer-ID": self.consumer, "Idempotency-Key": str(uuid.uuid4())}
        body = {"dataset": self.dataset, "format": self.format}
        job_id = self.call("POST", f"/exports/{export_type}", headers, body)["jobId"]
        while True:
            job = self.call("GET", f"/exports/{job_id}?wait=30")
            if job["status"] == "completed":
                return job
            if job["status"] in ("failed", "cancelled"):
                raise Failed(job)

    def completed(self, after=None):
        """From the newest back to this one, or to a full export."""
        jobs, cursor = [], ""
        while True:
            wanted = f"consumer={self.consumer}&dataset={self.dataset}&status=completed&limit=200"
            page = self.call("GET", f"/exports?{wanted}{cursor}")
            for job in page["items"]:
                if job["jobId"] == after:
                    return jobs[::-1]
                if (job["format"], job["compression"]) != (self.format, "none"):
                    # Somebody asked for it by hand, and its changes are in no other file.
                    raise Gap
                jobs.append(job)
                if job["exportType"] == "full":
                    return jobs[::-1]
            if not page["nextCursor"]:
                # What was loaded last isn't kept any more, and so may others be that came after it.
                raise Gap
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
        end = time.monotonic() + 60
        while True:
            request = urllib.request.Request(self.server + path, data, headers, method=method)
            try:
                return urllib.request.urlopen(request, timeout=40)
            except urllib.error.HTTPError as error:
                if error.code not in (429, 502, 503, 504) or time.monotonic() > end:
                    raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode()}") from None
                rest = float(error.headers.get("Retry-After") or 1)
            except OSError:
                if time.monotonic() > end:
                    raise
                rest = 1
            time.sleep(rest)
