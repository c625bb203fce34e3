"""The calls, through a proxy that breaks them."""

import hashlib
from pathlib import Path

import pytest
from conftest import Service
from proxy import proxy

from cdc_export import Client, Error, changes


@pytest.fixture(scope="module")
def job(service: Service) -> str:
    service.tables(3000, downloads="v text")
    with Client(service.url) as client:
        job = client.wait(client.export("downloader", "full", ["downloads"], format="csv"))
        assert job["rowsExported"] == 3000
        return str(job["jobId"])


def test_an_error_has_the_code_of_the_problem(client: Client) -> None:
    with pytest.raises(Error) as refused:
        client.export("downloader", "delta", ["nowhere"])
    assert refused.value.code == "member_invalid" and "no dataset `nowhere`" in refused.value.detail


def test_a_service_that_is_not_there_is_named() -> None:
    with Client("http://127.0.0.1:1", patience=0) as client, pytest.raises(Error) as refused:
        client.datasets()
    assert refused.value.code == "unreachable" and "http://127.0.0.1:1" in str(refused.value)


@pytest.mark.parametrize("ignores_range", [False, True])
def test_a_download_goes_on_where_it_broke_off(service: Service, job: str, tmp_path: Path, ignores_range: bool) -> None:
    steps: list[tuple[str, int, int]] = []
    with proxy(service.url) as (url, faults):
        faults.cut_after, faults.ignores_range = 20_000, ignores_range
        with Client(url, progress=lambda *step: steps.append(step)) as client:
            (path,) = client.download(job, "downloads", tmp_path)
            (file,) = client.manifest(job, "downloads")["export"]["files"]
    assert faults.ranges == [None, "bytes=20000-"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
    assert steps[-1] == (path.name, int(file["bytes"]), int(file["bytes"]))
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_later_call_goes_on_with_a_download(service: Service, job: str, tmp_path: Path) -> None:
    with proxy(service.url) as (url, faults), Client(url, patience=0) as client:
        faults.cut_after = 0
        with pytest.raises(Error, match="unreachable"):
            client.download(job, "downloads", tmp_path)
        faults.cut_after = 10_000
        # The cut-off rest makes progress, so that the same call goes on.
        client.download(job, "downloads", tmp_path)
        assert faults.ranges == [None, None, "bytes=10000-"]
        client.download(job, "downloads", tmp_path)
        assert len(faults.ranges) == 3


def test_a_changed_file_gets_no_name(service: Service, job: str, tmp_path: Path) -> None:
    with proxy(service.url) as (url, faults), Client(url) as client:
        faults.edit = lambda path, content: content[:-2] + b"?\n" if "/download" in path else content
        with pytest.raises(Error, match="changed"):
            client.download(job, "downloads", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_end_is_given_up(service: Service, job: str, tmp_path: Path) -> None:
    written: list[int] = []
    with proxy(service.url) as (url, faults):
        faults.edit = lambda path, content: content + bytes(20 << 20) if "/download" in path else content
        client = Client(url, progress=lambda _, done, total: written.append(done - total))
        with client, pytest.raises(Error, match="changed"):
            client.download(job, "downloads", tmp_path)
    assert max(written) < 1 << 20
    assert not list(tmp_path.iterdir())


def test_a_proxy_may_name_a_date_to_come_back(service: Service) -> None:
    with proxy(service.url) as (url, faults), Client(url, patience=0) as client:
        faults.is_down = True
        with pytest.raises(Error, match=r"unreachable: .* answers 503"):
            client.datasets()


@pytest.mark.parametrize("old, new", [(b'"rows":"3000"', b'"rows":"2999"'), (b"full_downloads_", b"..%2f")])
def test_a_changed_manifest_is_refused(service: Service, job: str, tmp_path: Path, old: bytes, new: bytes) -> None:
    with proxy(service.url) as (url, faults), Client(url) as client:
        faults.edit = lambda path, content: content.replace(old, new) if "/manifest" in path else content
        with pytest.raises(Error, match="changed"):
            client.download(job, "downloads", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_job_raises_its_own_code(service: Service, client: Client) -> None:
    service.tables(endless="v timestamptz")
    service.sql("insert into shop.endless values (1, 'infinity')")
    with pytest.raises(Error) as failed:
        client.wait(client.export("parquet", "full", ["endless"], format="parquet"))
    assert (failed.value.code, failed.value.dataset) == ("not_in_format", "endless")


def test_a_file_that_another_host_has_is_refused_at_once(service: Service) -> None:
    service.tables(1, elsewhere="v text")
    with Client(service.url, patience=600) as client:
        job = client.wait(client.export("elsewhere", "full", ["elsewhere"]))["jobId"]
        service.sql(f"update cdc_export.exports set destination_id = gen_random_uuid() where job = '{job}'")
        with pytest.raises(Error, match=r"^file_on_other_host: elsewhere: "):
            list(changes(client, "elsewhere", "elsewhere"))
