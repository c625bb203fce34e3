"""A client that openapi-python-client made: an export, and a call that is refused."""

import sys
import typing

from client import Client
from client.api.exports import get_export, start_delta, start_full
from client.models import Format, Options, Problem, Status, Submitted, SubmittedDatasets

with Client(base_url=sys.argv[1], timeout=70) as client:
    started = start_full.sync(client=client, x_consumer_id="python", body=Options(format_=Format.NDJSON))
    assert isinstance(started, Submitted), started
    job = get_export.sync(started.job_id, client=client, wait=60)
    assert job.status == Status.COMPLETED, job

    refused = start_delta.sync(client=client, x_consumer_id="no good")
    assert isinstance(refused, Problem) and refused.code == "consumer_invalid", refused
    # A caller must tell these apart: the answer, the answer to a request for several datasets, and the problem.
    told_apart = typing.get_args(typing.get_type_hints(start_full.sync)["return"])
    assert set(told_apart) == {Submitted, SubmittedDatasets, Problem, type(None)}, told_apart
    print(f"openapi-python-client: {job.rows_exported} rows")
