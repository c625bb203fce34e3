"""`python -m cdc_export duckdb FILE`. The exit code is 0 if all is loaded, 1 if something failed, 2 for bad usage."""

import argparse
import logging
import os
import re
import signal
import sys
import threading

from cdc_export.client import Client, Error, logger

try:
    from cdc_export.duckdb import load_duckdb
except ImportError as missing:
    sys.exit(f"error: {missing}: pip install 'cdc-export[duckdb]'")


class _StoppedError(BaseException):
    """SIGTERM or Ctrl-C."""


def main() -> int:
    options = vars(_arguments())
    url, every = options.pop("url"), options.pop("every")
    options["datasets"] = options["datasets"] or "*"
    _show_logs()
    is_stopped = threading.Event()

    def stop(*_: object) -> None:
        is_stopped.set()
        raise _StoppedError

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        with Client(url, os.environ.get("CDC_EXPORT_KEY")) as client:
            # DuckDB makes an error of its own of an exception in the rows.
            while not is_stopped.is_set():
                try:
                    load_duckdb(client, **options)
                except Error as error:
                    print(f"error: {error}", file=sys.stderr)
                    if every is None or error.code == "another_source":  # Each round would be refused.
                        return 1
                if every is None:
                    return 0
                is_stopped.wait(every)
    except _StoppedError:
        pass
    if every is None:
        print("error: interrupted: run the command again to go on from here", file=sys.stderr)
    return int(every is None)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m cdc_export")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    load = commands.add_parser("duckdb", help="keep the tables of a DuckDB file equal to the source")
    load.add_argument("path", metavar="FILE", help="the DuckDB file, made if need be")
    load.add_argument("--consumer", required=True, help="the consumer whose exports to load: one for each file")
    load.add_argument("--url", required=True, help="the service. The key in CDC_EXPORT_KEY is sent to it")
    load.add_argument("--dataset", dest="datasets", action="append", help="a dataset to load [default: all]")
    load.add_argument("--exclude", action="append", default=[], help="a dataset to leave out")
    load.add_argument("--schema", help="the schema of the tables [default: main]")
    load.add_argument("--format", choices=("parquet", "csv"), default="parquet", help="the form of the files")
    load.add_argument("--every", type=_seconds, metavar="TIME", help="go on until SIGTERM, with this pause, such as 5m")
    return parser.parse_args()


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)(ms|s|m|h|d)", text)
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError("a duration is expected, such as 30s, 5m or 1h")
    return int(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _show_logs() -> None:
    """Loaded exports go to the standard output, as of `cdc-export apply`, and warnings to the standard error."""
    loaded = logging.StreamHandler(sys.stdout)
    loaded.addFilter(lambda record: record.levelno == logging.INFO)
    warnings = logging.StreamHandler(sys.stderr)
    warnings.setLevel(logging.WARNING)
    logger.setLevel(logging.INFO)
    logger.handlers = [loaded, warnings]


if __name__ == "__main__":
    sys.exit(main())
