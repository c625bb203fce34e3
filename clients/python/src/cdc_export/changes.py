"""Which exports a copy lacks, in their order: those that are there, and a new one.

A generator acts on the exports that it has yielded as loaded: it asks for the next one behind them. If the caller stops
before, nothing is lost. It goes on later from the positions that it has stored.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cdc_export.client import Client, Error, Job, logger
from cdc_export.export import Export, Position

_FORMATS = ("parquet", "csv")
# Words of `continuity`: somebody set the watermark, so that the export may lack rows.
_BY_TIME = ("no_snapshot", "watermark_edited")
# How often an answer may say that something is missing, although nothing is.
_MAX_TRIES = 5


class _NeedsFullError(Exception):
    """Only a full export goes on, for this reason."""


def changes(
    client: Client, consumer: str, dataset: str, after: Sequence[str] | None = None, format: str = "parquet"
) -> Iterator[Export]:
    """Yields the exports of a dataset behind `after`, the position of the one that was loaded last: those that are
    there, and then a new delta. Without `after` the first one has all rows. Where only a full export goes on, it asks for
    one, and logs the reason. The service is asked for `format`, `parquet` or `csv`."""
    for exports in jobs(client, consumer, [dataset], {} if after is None else {dataset: after}, format):
        yield from exports


def jobs(
    client: Client,
    consumer: str,
    datasets: Sequence[str],
    after: Mapping[str, Sequence[str]],
    format: str = "parquet",
) -> Iterator[list[Export]]:
    """Does the same for several datasets, and yields for each job the list of its exports: they are the tables as of one
    moment. If a dataset ends the job, the others get one without it, and an `Error` is raised at the end."""
    run = _Run(client, consumer, datasets, after, format)
    while run.datasets and (run.full or not run.is_done):
        export_type = "full" if run.full else "delta"
        try:
            job = run.ask(export_type)
        except Error as error:
            if error.code in ("out_of_step", "database_restored") and export_type == "delta":
                yield from run.missed(error)
            elif error.dataset in run.datasets:
                run.leave_out(error)
            else:
                raise
            continue
        run.is_done = run.is_done or export_type == "delta"
        exports = job["exports"]
        yield from run.opened([{**job, **export} for export in exports if export["number"]], is_new=True)
    for failure in run.failed.values():
        if len(datasets) == 1:
            raise failure
    if run.failed:
        raise Error("failed", f"{len(run.failed)} of {len(datasets)} datasets failed: {', '.join(sorted(run.failed))}")


class _Run:
    """The state of a call of `jobs`."""

    def __init__(
        self, client: Client, consumer: str, datasets: Sequence[str], after: Mapping[str, Sequence[str]], format: str
    ):
        if format not in _FORMATS:
            raise ValueError(f"the format is {' or '.join(_FORMATS)}, not {format}")
        self.client, self.consumer, self.format = client, consumer, format
        self.datasets = sorted(set(datasets))
        self.positions = {dataset: Position(*position) for dataset, position in after.items()}
        # The datasets for which only a full export goes on, and why.
        self.full: dict[str, str] = {}
        self.failed: dict[str, Error] = {}
        self.is_done = False
        self._tries = 0

    def ask(self, export_type: str) -> Job:
        """Asks for the next job, and waits until it has ended."""
        if export_type == "full":
            for dataset, why in self.full.items():
                logger.warning("%s: full_export_needed: %s: asking for a full export", dataset, why)
            job = self.client.export(self.consumer, "full", sorted(self.full), format=self.format)
            self.full = {}
        else:
            last = {dataset: self.positions.get(dataset) for dataset in self.datasets}
            after = {dataset: position and position.job for dataset, position in last.items()}
            options = {"format": self.format, "skipEmpty": True, "heal": True, "after": after}
            job = self.client.export(self.consumer, "delta", self.datasets, **options)
        return self.client.wait(job)

    def leave_out(self, error: Error) -> None:
        dataset = str(error.dataset)
        logger.warning("%s: %s", dataset, error)
        self.failed[dataset] = error
        self.datasets.remove(dataset)
        self.full.pop(dataset, None)

    def missed(self, refusal: Error) -> Iterator[list[Export]]:
        """Yields the exports that the copies lack, by their jobs, oldest first."""
        open_jobs = [job["jobId"] for job in refusal.body.get("jobs", []) if job["status"] in ("pending", "processing")]
        for job in dict.fromkeys(open_jobs):
            try:
                self.client.wait(job)
            except Error as error:
                logger.warning("the open job %s: %s", job, error)
        lanes = {dataset: self._lane(dataset) for dataset in self.datasets}
        self._tries = 0 if open_jobs or self.full or any(lanes.values()) else self._tries + 1
        if self._tries == _MAX_TRIES:
            raise refusal
        while heads := [lane[0] for lane in lanes.values() if lane]:
            # A job takes its place in all its lanes at once. So there is one that is first wherever it is.
            behind = {export["jobId"] for lane in lanes.values() for export in lane[1:]}
            job = next((head["jobId"] for head in heads if head["jobId"] not in behind), heads[0]["jobId"])
            exports = [lane.pop(0) for lane in lanes.values() if lane and lane[0]["jobId"] == job]
            yield from self.opened(exports, is_new=False)
            for dataset in self.full:
                lanes[dataset] = []

    def _lane(self, dataset: str) -> list[Job]:
        """Returns the exports of a dataset that the copy lacks, from the newest full one on."""
        position = self.positions.get(dataset)
        try:
            lane = list(self.client.exports_after(self.consumer, dataset, position and position.job))
        except Error as error:
            if error.code not in ("database_restored", "gap"):
                raise
            self.full[dataset] = error.detail
            return []
        begin = max((at for at, export in enumerate(lane) if export["exportType"] == "full"), default=0)
        return lane[begin:]

    def opened(self, views: Sequence[Job], is_new: bool) -> Iterator[list[Export]]:
        """Downloads the files of a job's exports, and yields those that can be loaded next. If the job is new, a full
        export of it has to be one of these."""
        with tempfile.TemporaryDirectory(prefix="cdc-export-") as folder:
            exports = []
            for view in views:
                dataset = view["dataset"]
                try:
                    exports.append(self._open(view, Path(folder) / dataset))
                except _NeedsFullError as why:
                    if is_new and view["exportType"] == "full":
                        raise Error("full_export_needed", f"{why}, although a full export has just ended") from None
                    self.full[dataset] = str(why)
            if exports:
                yield exports
            # The caller has asked for the next one.
            self.positions.update({export.dataset: export.position for export in exports})

    def _open(self, view: Job, folder: Path) -> Export:
        job, dataset = view["jobId"], view["dataset"]
        export = Export(dataset, self.client.manifest(job, dataset), [])
        self._check(view, export)
        try:
            return Export(dataset, export.manifest, self.client.download_files(job, dataset, folder, export.manifest))
        except Error as error:
            if error.code != "file_gone":
                raise
            raise _NeedsFullError(f"the service has the files of the export {job} no more") from None

    def _check(self, view: Job, export: Export) -> None:
        """Checks that the export goes on from what is loaded."""
        job, chained, last = view["jobId"], export.manifest["export"], self.positions.get(export.dataset)
        of_lane = (chained["consumer"], chained["dataset"], export.job, export.number, export.manifest["digest"])
        if of_lane != (self.consumer, export.dataset, job, view["number"], view["digest"]):
            raise Error("changed", f"the manifest of {export.dataset} in the job {job} is that of another export")
        if last and last.source != export.position.source:
            why = f"the copy of {export.dataset} is of the database {last.source}, and the service has {export.position.source}"
            raise Error("another_source", f"{why}: make a new copy, in another file and for another consumer")
        if chained["format"] not in _FORMATS:
            raise _NeedsFullError(f"the export {job} is in {chained['format']}")
        if export.replaces:
            return
        if last is None or chained["previous"] != last.digest:
            raise _NeedsFullError(f"the export {job} does not go on from the one that was loaded last")
        if chained["continuity"] in _BY_TIME:
            raise _NeedsFullError(f"somebody set the watermark before the export {job}, which may lack rows")
        # A delta lacks a new column's values in the rows that nobody changed.
        if view["schemaChanged"]:
            raise _NeedsFullError(f"the export {job} has other columns")
