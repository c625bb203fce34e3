"""A consumer of cdc-export, in the standard library alone: copy it beside your loader. loading.md says why it does what it does."""

import csv
import hashlib
import json
import os
import sys
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


class Refused(Exception):
    """A call that the service refuses, with its reason as a stable word."""

    def __init__(self, call, status, problem):
        self.status, self.code, self.problem = status, problem.get("code"), problem
        super().__init__(f"{call}: {status} {self.code}: {problem.get('detail')}")


class Gap(Exception):
    """Some changes are in no file that can still be fetched."""


def arguments(target):
    """The service's address and the target, as the command line has them. Other arguments end the loader with one line."""
    if len(sys.argv) != 3 or not sys.argv[1].startswith(("http://", "https://")):
        print(f"usage: python {os.path.basename(sys.argv[0])} http://HOST:PORT {target}", file=sys.stderr)
        sys.exit(2)
    return sys.argv[1:]


class Exports:
    def __init__(self, server, consumer, format="csv", dataset="users", key=None):
        self.server, self.consumer, self.format, self.dataset = server.rstrip("/"), consumer, format, dataset
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def check_key(self, names):
        """Ends the loader with one line unless these are the dataset's key: the names in a list, or as SQL writes them. By another key a
        delta would delete rows that nobody deleted."""
        names = [name.strip() for name in next(csv.reader([names], skipinitialspace=True))] if isinstance(names, str) else names
        try:
            dataset = self.call("GET", f"/datasets/{self.dataset}")
        except Refused as refused:
            sys.exit(f"error: {refused}")
        if dataset["key"] is None:
            sys.exit(f"error: the dataset {self.dataset}: {'; '.join(dataset['problems'])}")
        if sorted(names) != sorted(dataset["key"]):
            sys.exit(f"error: KEY is {', '.join(names)}, but the key of the dataset {self.dataset} is {', '.join(dataset['key'])}")

    def trouble(self):
        """Why the next delta is going to fail although all that was asked for is loaded, or None. While the table's triggers are missing,
        for example, nobody sees what changes: each run would load a full export, and nobody would know."""
        problems = self.call("GET", f"/datasets/{self.dataset}")["problems"]
        return f"error: no delta of the dataset {self.dataset} is possible: {'; '.join(problems)}" if problems else None

    def catch_up(self, folder, after=None):
        """Asks for an export, and yields all exports to load, in their order: each job, and the paths of its files. `after` is the id and
        what `identity` says of the export that was loaded last. If a delta isn't possible, it yields a full export, which replaces all that
        was loaded before, and says on standard error why."""
        export_type = "delta" if after else "full"
        while True:
            try:
                if export_type == "full":
                    job = self.run("full")
                    yield job, self.fetch(job, folder)
                    return
                try:
                    job = self.run("delta", after=after[0], **({"afterSha256": after[1]} if after[1] else {}))
                except Refused as refused:
                    if refused.code != "out_of_step":
                        raise
                    # Somebody asked for exports that aren't loaded here: another loader, or this one before it crashed.
                    for job in self.missed(refused.problem["jobs"], after[0]):
                        yield job, self.fetch(job, folder)
                        after = (job["jobId"], identity(job))
                    continue
                self.see(job)
                yield job, self.fetch(job, folder)
                return
            except Failed as failed:
                if failed.code != "full_export_needed":
                    raise
                why = f"{failed.job['continuity']}: {failed.job['error']['detail']}"
            except Refused as refused:
                # The database was put back, or what was loaded last isn't kept any more; the file isn't.
                if refused.code not in ("database_restored", "file_gone") or export_type == "full":
                    raise
                why = f"{refused.code}: {refused.problem['detail']}"
            except Gap as gap:
                why = gap
            export_type = "full"
            print(f"a full export is next: {why}", file=sys.stderr)

    def missed(self, jobs, after):
        """Yields those of these jobs that have to be loaded after `after`, in their order. What comes before the last full export need not
        be loaded; an open job is yielded when it has completed."""
        fulls = [at for at, job in enumerate(jobs) if job["exportType"] == "full" and job["status"] == "completed"]
        number = self.call("GET", f"/exports/{after}")["number"]
        for job in jobs[fulls[-1]:] if fulls else jobs:
            job = self.ended(job)
            if job["status"] != "completed":
                continue
            # The order is that of numbers, never that of names or times. What isn't kept any more leaves a gap in them.
            if job["exportType"] != "full" and job["number"] != number + 1:
                raise Gap(f"the exports between the numbers {number} and {job['number']} are not kept any more")
            self.see(job)
            number = job["number"]
            yield job

    def see(self, job):
        """Raises Gap unless the copy can go on from this job's file. Perhaps somebody asked by hand for another kind of export: what
        changed is then in no other file."""
        if (job["format"], job["compression"]) != (self.format, "none"):
            raise Gap(f"the export {job['jobId']} is {job['format']} with the compression {job['compression']}, not {self.format}")
        if job["exportType"] == "incremental":
            raise Gap(f"the export {job['jobId']} is an incremental, which has no deletions")
        if job["exportType"] == "delta" and job["schemaChanged"]:
            raise Gap("schemaChanged: columns came, went or have other names, and rows that nobody changed are in no delta")

    def run(self, export_type, **more):
        """An export, once it has completed."""
        # The key makes a call that is sent again the same call.
        headers = {"X-Consumer-ID": self.consumer, "Idempotency-Key": str(uuid.uuid4())}
        body = {"dataset": self.dataset, "format": self.format} | more
        job = self.ended(self.call("POST", f"/exports/{export_type}", headers, body))
        if job["status"] != "completed":
            raise Failed(job)
        return job

    def ended(self, job):
        """The job, once it has ended."""
        while job["status"] not in ("completed", "failed", "cancelled"):
            job = self.call("GET", f"/exports/{job['jobId']}?wait=30")
        return job

    def fetch(self, job, folder):
        """The paths of a job's files, whole and checked. There are several if the dataset has `max_file_bytes`."""
        return [self.fetch_file(job, file, folder) for file in job["files"]]

    def fetch_file(self, job, of, folder):
        path = os.path.join(folder, os.path.basename(of["name"]))
        sha256 = hashlib.sha256()
        with self.open("GET", f"/exports/{job['jobId']}/files/{of['part']}/download") as answer, open(path, "wb") as file:
            while chunk := answer.read(1 << 20):
                sha256.update(chunk)
                file.write(chunk)
        if sha256.hexdigest() != of["sha256"]:
            raise OSError(f"{path} has not arrived whole")
        return path

    def call(self, method, path, headers={}, body=None):
        with self.open(method, path, headers, body) as answer:
            return json.load(answer)

    def open(self, method, path, headers={}, body=None):
        """The answer to a call. A service that is busy or restarts is asked again for a minute."""
        data = None if body is None else json.dumps(body).encode()
        headers = self.headers | headers | ({"Content-Type": "application/json"} if data else {})
        end = time.monotonic() + 60
        while True:
            request = urllib.request.Request(self.server + path, data, headers, method=method)
            try:
                return urllib.request.urlopen(request, timeout=40)
            except urllib.error.HTTPError as error:
                if error.code not in (429, 502, 503, 504) or time.monotonic() > end:
                    raise Refused(f"{method} {path}", error.code, problem_of(error)) from None
                rest = float(error.headers.get("Retry-After") or 1)
            except OSError:
                if time.monotonic() > end:
                    raise
                rest = 1
            time.sleep(rest)


def identity(job):
    """By what `afterSha256` knows an export: the SHA-256 of its file, or of several files the digest of their manifest."""
    return job["sha256"] or job["digest"]


def problem_of(error):
    """The service's own words; or that something else has answered, such as a proxy."""
    try:
        return json.load(error)
    except ValueError:
        return {"detail": "not an answer of cdc-export"}
