"""A consumer that keeps a copy of a dataset in SQLite. It calls the API itself and needs only Python's own modules.

    python examples/consumer.py http://localhost:8080 users copy.db

Each run brings the copy up to date, so run it from cron. The rows and the export that they came from are committed in
one transaction. So each export is loaded exactly once, even if the script is killed: the next run goes on from there.
CDC_EXPORT_KEY has the key, if the service wants one.
"""

import hashlib
import json
import os
import sqlite3
import sys
import urllib.error
import urllib.request


class Refused(Exception):
    """The service refused a call. `answer` is the body, which has a `code`."""

    def __init__(self, status, answer):
        super().__init__(f"{status} {answer}")
        self.code, self.answer = answer.get("code"), answer


class Service:
    """The calls of one consumer for one dataset."""

    def __init__(self, url, consumer, dataset):
        self.url, self.consumer, self.dataset = url.rstrip("/"), consumer, dataset

    def call(self, method, path, body=None):
        """Returns the answer, which is read like a file."""
        headers = {"X-Consumer-ID": self.consumer, "Content-Type": "application/json"}
        if key := os.environ.get("CDC_EXPORT_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=90)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, json.load(error)) from None

    def request(self, kind, last):
        """Asks for an export. A delta goes on from `last`, the job and digest that were loaded last. Returns the job."""
        body = {"dataset": self.dataset, "format": "ndjson"}
        if kind == "delta":
            body["after"] = last[0] if last else None
            if last:
                body["afterSha256"] = last[1]
        return json.load(self.call("POST", f"/exports/{kind}", body))

    def finished(self, job):
        """Waits until the job has ended, and returns it with its export of the dataset."""
        while True:
            job = json.load(self.call("GET", f"/exports/{job['jobId']}?wait=30"))
            if job["status"] in ("completed", "failed", "cancelled"):
                # Somebody else requested a job of several datasets.
                return job | next(it for it in job.get("exports", [job]) if it["dataset"] == self.dataset)

    def manifest(self, job):
        return json.load(self.call("GET", f"/exports/{job['jobId']}/manifest?dataset={self.dataset}"))

    def rows(self, job):
        """Returns the rows of a completed export. Fails after the last row if a file isn't what its digest says."""
        for file in job["files"]:
            digest = hashlib.sha256()
            with self.call("GET", f"/exports/{job['jobId']}/files/{file['part']}/download?dataset={self.dataset}") as content:
                for line in content:
                    digest.update(line)
                    yield json.loads(line)
            if digest.hexdigest() != file["sha256"]:
                sys.exit(f"{file['name']} was damaged on its way")


class Copy:
    """The copy: each row as a JSON document under its key, and the export that it came from."""

    def __init__(self, path):
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("create table if not exists documents (key text primary key, document text not null)")
        self.db.execute("create table if not exists last_export (job text, digest text)")
        # A second run waits here until the first one ends.
        self.db.execute("pragma busy_timeout = 600000")

    def last(self):
        return self.db.execute("select job, digest from last_export").fetchone()

    def load(self, job, manifest, rows):
        """Loads an export, and remembers it, in one transaction."""
        export = manifest["export"]
        if not export["key"]:
            sys.exit(f"{export['dataset']} has no key, by which this copy finds its rows: `cdc-export apply` replaces the whole table")
        # The first export of a consumer has all rows, whatever its type.
        replaces = export["type"] == "full" or export["previous"] is None
        with self.db:
            self.db.execute("begin immediate")
            last = self.last()
            if not replaces and (last is None or last[1] != export["previous"]):
                sys.exit("another run has changed the copy: run this again")
            if replaces:
                self.db.execute("delete from documents")
            # The first column of a delta says what became of the row.
            operation = export["columns"][0]["name"] if export["type"] == "delta" else None
            others = [operation, *(column["name"] for column in export["columns"] if "meta" in column)]
            for row in rows:
                key = json.dumps([row[column] for column in export["key"]])
                is_deleted = row.get(operation) == "DELETE"
                for column in others:
                    row.pop(column, None)
                if is_deleted:
                    self.db.execute("delete from documents where key = ?", [key])
                else:
                    self.db.execute("replace into documents values (?, ?)", [key, json.dumps(row)])
            self.db.execute("delete from last_export")
            self.db.execute("insert into last_export values (?, ?)", [job["jobId"], manifest["digest"]])


def update(service, copy):
    """Loads every export that the copy lacks, and then a new one."""
    kind = "delta"
    while True:
        try:
            jobs, is_new = [service.request(kind, copy.last())], True
        except Refused as refused:
            if refused.code in ("database_restored", "full_only"):
                kind = "full"
                continue
            if refused.code != "out_of_step":
                raise
            # An earlier run asked for these, and ended before it loaded them.
            jobs, is_new = refused.answer["jobs"], False
        kind = "delta"
        for job in map(service.finished, jobs):
            code = job["error"] and job["error"]["code"]
            if code == "full_export_needed" or job["format"] != "ndjson":
                kind = "full"
                break
            if job["status"] == "completed":
                try:
                    copy.load(job, service.manifest(job), service.rows(job))
                except Refused as refused:
                    if refused.code != "file_gone":
                        raise
                    kind = "full"
                    break
                service.call("POST", f"/exports/{job['jobId']}/ack?dataset={service.dataset}")
                print(f"{job['exportType']} {job['number']}: {job['rowsExported']} rows")
            elif is_new:
                sys.exit(f"the export {job['jobId']} is {job['status']}: {job['error']}")
        if is_new and kind == "delta":
            return


def main():
    if len(sys.argv) != 4:
        sys.exit(f"usage: python {sys.argv[0]} URL DATASET COPY.db")
    url, dataset, path = sys.argv[1:]
    update(Service(url, "sqlite-copy", dataset), Copy(path))


if __name__ == "__main__":
    main()
