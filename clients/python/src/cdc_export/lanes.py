"""Which exports a copy lacks, in their order: those that are there, and a new one.

A generator takes the exports that it has yielded for loaded. A caller that stops before goes on from its own positions.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cdc_export.client import Client, Error, Job, logger
from cdc_export.export import Export, Position

# Words of `continuity`: somebody set the watermark, so that the export may lack rows.
_BY_TIME = ("no_snapshot", "watermark_edited")


class _NeedsFullError(Exception):
    """Only a full export goes on, for this reason."""


def changes(
    client: Client, consumer: str, dataset: str, after: Sequence[str] | None = None, format: str = "parquet"
) -> Iterator[Export]:
    """Yields the exports of a dataset behind `after`, the position of the one that was loaded last: those that are
    there, and then a new delta. Without `after` the first one has all rows. Where only a full export goes on, it asks
    for one, and logs the reason. The service is asked for `format`, `parquet` or `csv`."""
    for exports in jobs(client, consumer, [dataset], {dataset: after} if after else {}, format):
        yield from exports


def jobs(
    client: Client, consumer: str, datasets: Sequence[str], after: Mapping[str, Sequence[str]], format: str = "parquet"
) -> Iterator[list[Export]]:
    """Does the same for several datasets, and yields for each job the list of its exports, which are the tables as of
    one moment. If a dataset ends the job, the others get one without it, and an `Error` is raised at the end."""
    run = _Run(client, consumer, datasets, after, format)
    while run.datasets and (run.full or not run.is_done):
        is_delta = not run.full
        try:
            job = run.ask()
        except Error as error:
            if error.code in ("out_of_step", "database_restored"):
                yield from run.missed(error)
            elif error.dataset in run.datasets and len(datasets) > 1:
                logger.warning("%s: %s", error.dataset, error)
                run.failed.append(error.dataset)
                run.datasets.remove(error.dataset)
                run.full.pop(error.dataset, None)
            else:
                raise
            continue
        run.is_done = run.is_done or is_delta
        for export in job["exports"]:
            if is_delta and export["exportType"] == "full" and export["continuity"]:
                logger.warning("%s: %s: the service made a full export", export["dataset"], export["continuity"])
        yield from run.opened([{**job, **export} for export in job["exports"] if export["number"]], is_new=True)
    if run.failed:
        raise Error("failed", f"{len(run.failed)} of {len(datasets)} datasets failed: {', '.join(sorted(run.failed))}")


class _Run:
    """The state of a call of `jobs`."""

    def __init__(
        self, client: Client, consumer: str, datasets: Sequence[str], after: Mapping[str, Sequence[str]], format: str
    ):
        self.client, self.consumer, self.format = client, consumer, format
        self.datasets = sorted(set(datasets))
        self.positions = {dataset: Position(*position) for dataset, position in after.items()}
        # The datasets for which only a full export goes on, and why.
        self.full: dict[str, str] = {}
        self.failed: list[str] = []
        self.is_done = False

    def ask(self) -> Job:
        """Asks for the next job, and waits until it has ended."""
        if self.full:
            for dataset, why in self.full.items():
                logger.warning("%s: full_export_needed: %s: asking for a full export", dataset, why)
            job = self.client.wait(self.client.export(self.consumer, "full", sorted(self.full), format=self.format))
            self.full = {}
            return job
        last = {dataset: self.positions.get(dataset) for dataset in self.datasets}
        after = {dataset: position and position.job for dataset, position in last.items()}
        options = {"format": self.format, "skipEmpty": True, "heal": True, "after": after}
        return self.client.wait(self.client.export(self.consumer, "delta", self.datasets, **options))

    def missed(self, refusal: Error) -> Iterator[list[Export]]:
        """Yields the exports that the copies lack, by their jobs, oldest first."""
        open_jobs = [job["jobId"] for job in refusal.body.get("jobs", []) if job["status"] in ("pending", "processing")]
        for job in dict.fromkeys(open_jobs):
            try:
                self.client.wait(job)
            except Error as error:
                logger.warning("the open job %s: %s", job, error)
        lanes = {dataset: self._lane(dataset) for dataset in self.datasets}
        if not (open_jobs or self.full or any(lanes.values())):
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
            # A full export that was asked for since then replaces what the service has forgotten.
            full = self.client.newest_full(self.consumer, dataset)
            if not (full and position and full["jobId"] > position.job):
                self.full[dataset] = error.detail
                return []
            lane = [full]
        return lane[max((at for at, export in enumerate(lane) if export["exportType"] == "full"), default=0) :]

    def opened(self, views: Sequence[Job], is_new: bool) -> Iterator[list[Export]]:
        """Downloads the files of a job's exports, and yields those that can be loaded next. If the job is new, a full
        export of it has to be one of these."""
        with tempfile.TemporaryDirectory(prefix="cdc-export-") as folder:
            exports = []
            for at, view in enumerate(views):
                try:
                    exports.append(self._open(view, Path(folder) / str(at)))
                except _NeedsFullError as why:
                    if is_new and view["exportType"] == "full":
                        raise Error("full_export_needed", f"{why}, although a full export has just ended") from None
                    self.full[view["dataset"]] = str(why)
            if exports:
                yield exports
            # The caller has asked for the next one.
            self.positions.update({export.dataset: export.position for export in exports})

    def _open(self, view: Job, folder: Path) -> Export:
        job, dataset = view["jobId"], view["dataset"]
        self._check(view, Export(manifest := self.client.manifest(job, dataset), []))
        try:
            return Export(manifest, self.client.download(job, dataset, folder, manifest))
        except Error as error:
            if error.code != "file_gone":
                raise Error(error.code, f"{dataset}: {error.detail}", error.body) from error
            raise _NeedsFullError(f"the service has the files of the export {job} no more") from None

    def _check(self, view: Job, export: Export) -> None:
        """Checks that the export goes on from what is loaded."""
        job, chained, last = view["jobId"], export.manifest["export"], self.positions.get(export.dataset)
        found = (chained["consumer"], export.dataset, export.job, export.number, export.position.digest)
        expected = (self.consumer, view["dataset"], job, view["number"], view["digest"])
        if found != expected or export.dataset not in self.datasets:
            raise Error("changed", f"the manifest of {view['dataset']} in the job {job} is that of another export")
        if last and last.source != export.position.source:
            why = f"the copy of {export.dataset} is of the database {last.source}, not of {export.position.source}"
            raise Error("another_source", f"{why}: make a new copy, in another file")
        if last and last.order and int(export.position.order or 0) <= int(last.order):
            why = f"the export {job} has the order {export.position.order}, which is not above {last.order}: the source"
            why = f"{export.dataset}: {why} was restored without its output folder"
            raise Error("older", f"{why}. Empty what goes by the order, and pass the position without it (`[:3]`)")
        if chained["format"] not in ("parquet", "csv"):
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
