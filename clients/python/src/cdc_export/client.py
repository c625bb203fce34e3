"""The calls of the service. This module knows nothing of rows."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import httpx

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

# JSON objects, with the members that docs/API.md and docs/FORMATS.md name.
Job = dict[str, Any]
Manifest = dict[str, Any]
# Is called with a label, and how much is done of how much: percent of a job, or bytes of a file.
Progress = Callable[[str, int, int], None]

logger = logging.getLogger("cdc_export")

_PAUSE_SECONDS = 1.0


class Error(Exception):
    """The service refused a call, a job failed, or an export can't be used. `code` is a stable word for programs."""

    def __init__(self, code: str, detail: str, body: Mapping[str, Any] | None = None):
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.body = code, detail, dict(body or {})
        # The one whose export ended a job of several datasets.
        self.dataset: str | None = (self.body.get("error") or {}).get("dataset")


class Client:
    """A service at `url`, such as `http://localhost:8080`, and the key that is sent to it."""

    def __init__(self, url: str, key: str | None = None, *, progress: Progress | None = None, patience: float = 60):
        """`patience` is how many seconds a call is repeated while the service doesn't answer."""
        headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}
        self.url = url.rstrip("/")
        # The answer to `?wait=30` takes half a minute.
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=90, follow_redirects=True)
        self._progress = progress or _bar()
        self._patience = patience

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def datasets(self) -> list[dict[str, Any]]:
        """Returns the datasets that the key may see, also those that are not ready."""
        return list(self._call("GET", "/datasets").json()["items"])

    def export(self, consumer: str, type: str, datasets: Sequence[str] | Literal["*"], **options: Any) -> str:
        """Asks for an export of a type (`full`, `incremental` or `delta`), and returns the id of its job. `options` are
        other members of the request, such as `format="parquet"` or `skipEmpty=True`."""
        body = {"datasets": datasets if isinstance(datasets, str) else list(datasets), **options}
        # A repeated call makes no second job.
        headers = {"X-Consumer-ID": consumer, "Idempotency-Key": str(uuid.uuid4())}
        return str(self._call("POST", f"/exports/{type}", json=body, headers=headers).json()["jobId"])

    def wait(self, job: str) -> Job:
        """Waits until a job has ended, and returns it, always with `exports`. Raises an `Error` with the job's own code
        if it failed, and with the code `cancelled` if it was cancelled."""
        while True:
            answer: Job = self._call("GET", f"/exports/{job}", params={"wait": "30"}).json()
            self._progress(f"export {job}", answer["progress"], 100)
            if answer["status"] == "completed":
                return {"exports": [answer], **answer}
            if answer["status"] in ("failed", "cancelled"):
                error = answer["error"] or {"code": "cancelled", "detail": f"the job {job} was cancelled"}
                raise Error(error["code"], error["detail"], answer)

    def exports_after(self, consumer: str, dataset: str, job: str | None) -> Iterator[Job]:
        """Yields the published exports behind a job, oldest first. Without a job, these are all that a new copy has to
        load: the newest full export and those behind it, or all exports from the first one on."""
        lane = {"consumer": consumer, "dataset": dataset}
        if job is not None:
            yield from self._pages({**lane, "after": job})
            return
        if full := self.newest_full(consumer, dataset):
            yield full
            yield from self._pages({**lane, "after": full["jobId"]})
            return
        completed = self._pages({**lane, "status": "completed"})
        exports = sorted((_of_dataset(job, dataset) for job in completed), key=lambda job: job["number"])
        if exports and exports[0]["number"] != 1:
            raise Error("gap", f"the service has no full export of {dataset}, and its first exports were removed")
        yield from exports

    def newest_full(self, consumer: str, dataset: str) -> Job | None:
        """Returns the newest published full export."""
        lane = {"consumer": consumer, "dataset": dataset, "status": "completed", "exportType": "full", "limit": "1"}
        found = self._call("GET", "/exports", params=lane).json()["items"]
        return _of_dataset(found[0], dataset) if found else None

    def manifest(self, job: str, dataset: str) -> Manifest:
        """Returns the manifest of an export, and checks its digest."""
        manifest: Manifest = self._call("GET", f"/exports/{job}/manifest", params={"dataset": dataset}).json()
        if _digest(manifest["export"]) != manifest["digest"]:
            raise Error("changed", f"the manifest of {dataset} in the job {job} is not what its digest says")
        return manifest

    def download(self, job: str, dataset: str, path: str | Path, manifest: Manifest | None = None) -> list[Path]:
        """Downloads the files of an export into a folder, and returns their paths. A second call goes on with a
        download that broke off. Each file gets its name when its SHA-256 is the one in the manifest."""
        folder, paths = Path(path), []
        folder.mkdir(parents=True, exist_ok=True)
        for part, file in enumerate((manifest or self.manifest(job, dataset))["export"]["files"], start=1):
            name = PurePosixPath(file["path"]).name
            # A service can't choose where on this machine a file is written.
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
                raise Error("changed", f"the job {job} has a file with the name {name!r}")
            paths.append(folder / name)
            if not (paths[-1].exists() and _sha256(paths[-1]) == file["sha256"]):
                self._download_file(f"/exports/{job}/files/{part}/download", dataset, file, paths[-1])
        return paths

    def ack(self, job: str, dataset: str | None = None) -> None:
        """Tells the service that an export and all before it are loaded. Call it when the rows are committed. Without
        a dataset it stands for all datasets of the job. A job that the service doesn't know any more is passed over."""
        try:
            self._call("POST", f"/exports/{job}/ack", params={"dataset": dataset} if dataset else {})
        except Error as error:
            if error.code != "not_found":
                raise

    def _pages(self, params: dict[str, str]) -> Iterator[Job]:
        params = {**params, "limit": "200"}
        while True:
            page = self._call("GET", "/exports", params=params).json()
            yield from page["items"]
            if page["nextCursor"] is None:
                return
            params["cursor"] = page["nextCursor"]

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Makes a call, and repeats it for a minute while the service doesn't answer."""
        until = time.monotonic() + self._patience
        has_warned = False
        while True:
            try:
                response = self._http.request(method, path, **options)
                if response.is_success:
                    return response
                error = _problem_that_may_pass(response)
                # A proxy may send a date.
                seconds = response.headers.get("Retry-After", "")
                pause = float(seconds) if seconds.isdecimal() else _PAUSE_SECONDS
            except httpx.TransportError as cause:
                error, pause = Error("unreachable", f"{self.url} does not answer: {cause}"), _PAUSE_SECONDS
            if time.monotonic() + pause > until:
                raise error
            if not has_warned:
                logger.warning("%s; trying again for up to %d s", error, self._patience)
                has_warned = True
            time.sleep(pause)

    def _download_file(self, url: str, dataset: str, file: Mapping[str, str], target: Path) -> None:
        part, size = target.with_name(f"{target.name}.part"), int(file["bytes"])
        part.touch()
        has, until = part.stat().st_size, time.monotonic() + self._patience
        while has < size:
            error = self._download_rest(url, dataset, part, has, size)
            had, has = has, part.stat().st_size
            if has > had:
                until = time.monotonic() + self._patience
            elif time.monotonic() > until:
                raise error
            else:
                time.sleep(_PAUSE_SECONDS)
        if _sha256(part) != file["sha256"]:
            part.unlink()
            raise Error("changed", f"{target.name} is not what its SHA-256 says; the next download begins anew")
        os.replace(part, target)

    def _download_rest(self, url: str, dataset: str, part: Path, had: int, size: int) -> Error:
        """Appends the bytes that a file lacks. Returns the error to raise if that adds nothing."""
        headers = {"Range": f"bytes={had}-"} if had else {}
        try:
            with self._http.stream("GET", url, params={"dataset": dataset}, headers=headers) as response:
                if not response.is_success:
                    response.read()
                    return _problem_that_may_pass(response)
                # A proxy that ignores `Range` sends the whole file.
                skip = had if response.status_code == 200 else 0
                with part.open("ab") as out:
                    for chunk in response.iter_raw():
                        out.write(chunk[skip:])
                        skip = max(0, skip - len(chunk))
                        self._progress(part.stem, out.tell(), size)
                        if out.tell() > size:
                            break
        except httpx.TransportError as cause:
            return Error("unreachable", f"the download of {part.stem} broke off: {cause}")
        return Error("unreachable", f"{self.url} ended the download of {part.stem} early")


def _of_dataset(job: Job, dataset: str) -> Job:
    """Returns a job with the members of its export of the dataset, as a job of one dataset has them."""
    return {**job, **next(export for export in job.get("exports", [job]) if export["dataset"] == dataset)}


def _problem_that_may_pass(response: httpx.Response) -> Error:
    """Returns the error of an answer after which the call may be repeated. Raises that of any other one."""
    is_of_service = response.headers.get("Content-Type", "").startswith("application/problem+json")
    if is_of_service:
        body = response.json()
        error = Error(body["code"], body["detail"], body)
    else:
        error = Error("unreachable", f"{response.url} answers {response.status_code} {response.reason_phrase}")
    may_pass = "Retry-After" in response.headers and error.code not in ("output_missing", "file_on_other_host")
    if response.status_code in (429, 502, 503, 504) and (may_pass or not is_of_service):
        return error
    raise error


def _digest(export: Mapping[str, Any]) -> str:
    """The SHA-256 of an export without the `path` of its files, as RFC 8785 has it. All its numbers are texts, and the
    names of its members are ASCII, so that Python's own order and escapes are those of the RFC."""
    files = [{name: value for name, value in file.items() if name != "path"} for file in export["files"]]
    text = json.dumps({**export, "files": files}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _bar() -> Progress:
    """Returns a bar of tqdm, if that is installed and the output is a terminal."""
    bars: dict[str, Any] = {}

    def show(label: str, done: int, total: int) -> None:
        if label not in bars:
            bars[label] = tqdm(desc=label, total=total, leave=False, unit="%" if total == 100 else "B", unit_scale=True)
        bars[label].update(done - bars[label].n)
        if done >= total:
            bars.pop(label).close()

    return show if tqdm and sys.stderr.isatty() else lambda label, done, total: None
