"""The exports in a folder that `cdc-export pull` fills: copy this file beside your loader. loading.md says why it does what it does."""

import fcntl
import json
import os
import stat
import sys
from pathlib import Path


def arguments(names):
    """What the command line names, the folder first. Other arguments end the loader with one line."""
    if len(sys.argv) != 1 + len(names.split()) or not os.path.isdir(sys.argv[1]):
        print(f"usage: python {os.path.basename(sys.argv[0])} {names}", file=sys.stderr)
        sys.exit(2)
    return sys.argv[1:]


def need_full(why):
    """Ends the loader, since only a full export goes on from what is loaded. `pull --request full` fetches one."""
    print(f"a full export is needed: {why}", file=sys.stderr)
    sys.exit(3)


class Export:
    def __init__(self, path):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        self.path, self.number, self.digest = path, manifest["number"], manifest["digest"]
        export = manifest["export"]
        # The id alone, or of a job of several datasets an object.
        self.job = export["job"] if isinstance(export["job"], str) else export["job"]["id"]
        self.type, self.key, self.rows = export["type"], export["key"], export["rows"]
        self.format, self.previous = export["format"], export["previous"]
        columns = [column["name"] for column in export["columns"] if "meta" not in column]
        # The first column of a delta says what became of the row. The others are those of the table.
        self.operation = columns.pop(0) if self.type == "delta" else None
        self.columns = columns
        self.files = [str(path.with_name(file["path"])) for file in export["files"]]
        # A consumer's first export holds all there was, too, whatever its type.
        holds_all = self.type == "full" or (export["watermarkFrom"], self.previous) == (None, None)
        self.replaces = holds_all and self.format == "parquet"

    def remove(self):
        # The manifest last: as long as it is there, the next run knows what is left to be removed.
        for path in [*self.files, self.path]:
            Path(path).unlink(missing_ok=True)


class Inbox:
    def __init__(self, folder):
        self.folder = Path(folder)
        # Two loaders at once would load twice: the second one waits. The lock ends with the process, however that ends.
        # Another user who may write to the folder may have put a link, a pipe or a file of their own under this name.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self.lock = open(os.open(self.folder / ".load.lock", flags, 0o666), "r+b", buffering=0)
        found = os.fstat(self.lock.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            sys.exit(f"{self.folder / '.load.lock'}: it is not a regular file of yours with a single hard link: remove it")
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def exports(self, loaded):
        """Yields the exports to load, in their order. `loaded` is the digest of the one that was loaded last, or an empty text. An export's
        files are removed when the loader asks for the next one: by then it has committed the rows."""
        found = {export.digest: export for export in map(Export, self.folder.glob("*.manifest.json"))}
        # A loader was killed between its commit and the removal; or the folder was filled anew.
        known = loaded
        while export := found.pop(known, None):
            export.remove()
            known = export.previous
        waiting = sorted(found.values(), key=lambda export: export.number)
        begin = max((at for at, export in enumerate(waiting) if export.replaces), default=0)
        for export in waiting[:begin]:
            export.remove()
        for export in waiting[begin:]:
            if export.format != "parquet":
                need_full(f"the export {export.number} is {export.format}")
            if not export.replaces and export.previous != loaded:
                need_full(f"the export {export.number} doesn't go on from the one that was loaded last")
            yield export
            export.remove()
            loaded = export.digest
            print(f"{export.type} {export.number}: {export.rows} rows", file=sys.stderr)
