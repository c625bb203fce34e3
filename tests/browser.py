"""The page as people use it, in a real Chromium against the real binary: tests/browser.sh runs it.

The tests share a service and its data, and run in their order: the tour's first export is the first one there is. Every page that
a test opens is watched: an error on its console, a breach of its policy, a request to another host or one that fails fails the
test, unless it says that it expects it.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, expect, sync_playwright

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS = 50_000
PATIENCE = 20_000
ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Text that would do something if anything took it for HTML.
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


class Service:
    """The binary on a private Postgres, which may be stopped and started again on the same port and data."""

    def __init__(self, binary):
        self.binary = binary
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.folder.chmod(0o755)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def variables(self, **more):
        return {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PORT": str(self.port),
            "DATA_DIR": str(self.folder / "data"),
            "OUTPUT_DIR": str(self.folder / "output"),
            "SEED_ROWS": str(ROWS),
            "LOG_FORMAT": "json",
            **({"PG_BIN_DIR": os.environ["PG_BIN_DIR"]} if "PG_BIN_DIR" in os.environ else {}),
            **more,
        }

    def start(self, **more):
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([self.binary], env=self.variables(**more), cwd=self.folder, stderr=log)
        wait_for("the service is ready", lambda: self.answers("/health/ready"))

    def answers(self, path):
        assert self.process.poll() is None, f"the service ended: {(self.folder / 'log').read_text()[-2000:]}"
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(self.url + path, timeout=5).status == 200

    def stop(self, how=signal.SIGTERM):
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    def command(self, *arguments):
        done = subprocess.run(
            [self.binary, *arguments], env=self.variables(), cwd=self.folder, check=True, capture_output=True, text=True
        )
        return done.stdout

    def call(self, method, path, headers=None):
        request = urllib.request.Request(self.url + path, method=method, headers=headers or {})
        with urllib.request.urlopen(request, timeout=70) as answer:
            body = answer.read()
            return json.loads(body) if body else None

    def export(self, kind, consumer):
        """An export that has completed."""
        job = self.call("POST", f"/exports/{kind}", {"X-Consumer-ID": consumer})["jobId"]
        job = self.call("GET", f"/exports/{job}?wait=60")
        assert job["status"] == "completed", job
        return job

    def psql(self, database="cdc_export"):
        """The command line of a psql, and its environment."""
        place = (self.folder / "data/postgres/postmaster.pid").read_text().splitlines()[4]
        password = (self.folder / "data/postgres.password").read_text().strip()
        return (
            ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", place, "-U", "postgres", database],
            {**os.environ, "PGPASSWORD": password},
        )

    def sql(self, statements, database="cdc_export"):
        command, variables = self.psql(database)
        done = subprocess.run(command, env=variables, input=statements, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def held(self):
        """A lock that no export gets past, for the 5 seconds that it waits."""
        command, variables = self.psql()
        holder = subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        holder.stdin.write("begin; lock table users in access exclusive mode; select 'held';\n")
        holder.stdin.flush()
        assert holder.stdout.readline().strip() == "held"
        try:
            yield
        finally:
            holder.stdin.close()
            holder.wait(10)


def wait_for(what, condition):
    until = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.05)


class Watched:
    """A browser's page whose complaints are kept."""

    def __init__(self, browser, service, **options):
        # Downloads go where the test looks at them, and the clipboard is the test's.
        options.setdefault("viewport", {"width": 1280, "height": 900})
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.complaints = []
        self.expected = []
        self.requests = []
        self.host = f"127.0.0.1:{service.port}"
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"page: {error}"))
        self.page.on("request", self._request)
        self.page.on("requestfailed", self._failed)
        self.context.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error('policy: ' + e.violatedDirective + ' ' + e.blockedURI))"
        )

    def _console(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text} {message.location.get('url')}")

    def _request(self, request):
        self.requests.append((time.monotonic(), request.method, request.url))
        if not request.url.startswith((f"http://{self.host}/", f"blob:http://{self.host}/", "data:")):
            self.complaints.append(f"another host: {request.url}")
        assert "cdcx_" not in request.url, "a key in a URL"

    def _failed(self, request):
        # A view that goes away drops what it asked for, and a download is no page.
        if request.failure not in ("net::ERR_ABORTED",):
            self.complaints.append(f"request: {request.failure} {request.url}")

    def close(self):
        complaints = [c for c in self.complaints if not any(re.search(e, c) for e in self.expected)]
        self.context.close()
        assert not complaints, complaints


def accessible(page, where):
    """That axe finds nothing that keeps somebody out."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    told = [f"{v['id']}: {v['help']}: {[n['html'][:160] + ' ' + n['failureSummary'] for n in v['nodes']][:3]}" for v in found]
    assert not told, f"{where}: {told}"


def job_rows(page):
    return page.locator("tr[data-job]")


def consumer_row(page, name):
    return page.get_by_role("table", name="Consumers and where they stand").get_by_role("row").filter(has_text=name)


def saved(download):
    path = pathlib.Path(download.path())
    return hashlib.sha256(path.read_bytes()).hexdigest()


# The tests, in their order.


def test_the_first_export_by_one_button(watch, service):
    page = watch.page
    page.goto(service.url)
    expect(page.get_by_text("Nobody has asked for an export yet")).to_be_visible()
    expect(page.locator(".empty code")).to_have_text(
        f"curl -X POST -H 'X-Consumer-ID: consumer-1' '{service.url}/exports/full'"
    )
    accessible(page, "the empty page")
    page.get_by_role("button", name="Start a full export for consumer-1").click()

    # It moves: a failpoint stops it in its middle for a while.
    row = job_rows(page).first
    bar = row.get_by_role("progressbar")
    expect(bar).to_be_visible()
    wait_for("progress in the middle", lambda: 0 < int(bar.get_attribute("value") or 0) < 100)
    expect(row).to_contain_text(" left")
    accessible(page, "an export that runs")
    expect(row).to_have_attribute("data-status", "completed")
    # What ended is said to who doesn't see it.
    expect(page.locator("#said")).to_have_text(re.compile(r"completed: full export of users, for consumer-1, [0-9,]+ rows"))
    expect(bar).to_be_hidden()

    job = service.call("GET", "/exports?limit=1")["items"][0]
    expect(row).to_contain_text(f"{job['rowsExported']:,}")
    with page.expect_download() as download:
        row.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == job["outputFilename"]
    assert saved(download.value) == job["sha256"]


def test_the_tour_goes_on_to_a_delta(watch, service):
    page = watch.page
    page.goto(service.url)
    row = consumer_row(page, "consumer-1")
    before = row.locator("time").first.get_attribute("datetime")
    expect(row).to_contain_text("exact")
    service.call("DELETE", "/users/42")
    service.sql("update users set name = 'Renamed', updated_at = now() where id = 43")
    page.reload()
    expect(row.get_by_role("cell").nth(3)).to_have_text("2")
    row.get_by_role("button", name="delta").click()
    first = job_rows(page).first
    expect(first).to_contain_text("delta users")
    expect(first).to_have_attribute("data-status", "completed")
    expect(row.get_by_role("cell").nth(3)).to_have_text("0")
    wait_for("the watermark moves", lambda: row.locator("time").first.get_attribute("datetime") > before)
    with page.expect_download() as download:
        first.get_by_role("link", name="Download").click()
    lines = pathlib.Path(download.value.path()).read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["DELETE", "42"], ["UPDATE", "43"]], lines


def test_one_is_cancelled_and_retried(watch, service):
    page = watch.page
    page.goto(service.url)
    row = consumer_row(page, "consumer-1")
    expect(row).to_be_visible()
    with service.held():
        row.get_by_role("button", name="incremental").click()
        first = job_rows(page).first
        expect(first).to_have_attribute("data-status", "processing")
        first.get_by_role("button", name="Cancel").click()
        dialog = page.get_by_role("dialog")
        accessible(page, "the question before a cancel")
        dialog.get_by_role("button", name="Let it run").click()
        expect(first).to_have_attribute("data-status", "processing")
        first.get_by_role("button", name="Cancel").click()
        dialog.get_by_role("button", name="Cancel the export").click()
        expect(first).to_have_attribute("data-status", "cancelled")
    # The button that was clicked is gone, and its successor has the focus.
    expect(first.get_by_role("button", name="Retry")).to_be_focused()
    cancelled = first.get_attribute("data-job")
    first.get_by_role("button", name="Retry").click()
    again = job_rows(page).filter(has=page.locator(f":scope:not([data-job='{cancelled}'])")).first
    expect(again).to_have_attribute("data-status", "completed")

    # The story of both, by their own addresses.
    again.get_by_role("link", name="incremental users").click()
    expect(page).to_have_url(re.compile(r"#/jobs/[0-9a-f-]{36}$"))
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.get_by_role("link", name=cancelled).click()
    expect(page.locator(".timeline")).to_contain_text("Cancelled")
    expect(page.get_by_text("The watermark is where it was")).to_be_visible()


def test_a_table_that_is_locked_holds_the_exports_up_nowhere(watch, service):
    page = watch.page
    watch.expected = ["Failed to load resource.*503"]
    with service.held():
        page.goto(service.url)
        expect(job_rows(page).first).to_be_visible(timeout=2_000)
        expect(page.get_by_text("How the consumers stand can't be told now: ")).to_be_visible()
        expect(page.locator("#banner")).to_be_hidden()
    consumers = page.get_by_role("region", name="Consumers")
    expect(consumers.get_by_role("cell").first).to_be_visible()
    expect(consumers.get_by_text("can't be told now")).to_be_hidden()


def test_what_is_too_late_is_said_beside_its_button(watch, service):
    page = watch.page
    watch.expected = ["Failed to load resource.*409"]
    page.goto(service.url)
    expect(consumer_row(page, "consumer-1")).to_be_visible()
    # The button's job ends between the look and the click.
    with service.held():
        consumer_row(page, "consumer-1").get_by_role("button", name="full").click()
        first = job_rows(page).first
        expect(first).to_have_attribute("data-status", "processing")
        first.get_by_role("button", name="Cancel").click()
        page.route("**/exports?*", lambda route: None)
        expect(page.get_by_role("dialog")).to_be_visible()
    job = first.get_attribute("data-job")
    assert service.call("GET", f"/exports/{job}?wait=60")["status"] == "completed"
    page.get_by_role("button", name="Cancel the export").click()
    expect(first.get_by_role("alert")).to_have_text("the export is completed already")


def test_a_job_tells_its_story_while_it_runs(watch, service):
    page = watch.page
    with service.held():
        job = service.call("POST", "/exports/delta", {"X-Consumer-ID": "consumer-1"})["jobId"]
        page.goto(f"{service.url}/#/jobs/{job}")
        expect(page.locator(".timeline")).to_contain_text("Asked for")
        expect(page.locator(".badge").first).to_have_text("processing")
    # Its events tell, not a poll: they are one request for as long as it runs.
    expect(page.locator(".badge").first).to_have_text("completed")
    events = [url for _, _, url in watch.requests if url.endswith(f"{job}/events")]
    assert len(events) == 1, events
    expect(page.locator(".timeline")).to_contain_text("Completed")
    known = service.call("GET", f"/exports/{job}")
    story = page.locator("dl")
    for value in (known["sha256"], known["outputFilename"], f"{known['bytesWritten']:,} bytes", job):
        expect(story).to_contain_text(value)
    expect(page.get_by_role("heading", name="Ask for another one like it")).to_be_visible()
    command = page.locator(".command code").first.text_content()
    again = subprocess.run(["bash", "-c", command.replace("curl", "curl -sf", 1)], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["exportType"] == "delta", again.stdout
    assert json.loads(page.locator("details code").text_content()) == known
    watch.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy to check the file").click()
    expect(page.get_by_role("button", name="Copied to check the file")).to_be_visible()
    checked = subprocess.run(
        ["bash", "-c", page.evaluate("navigator.clipboard.readText()")],
        cwd=service.folder / "output", capture_output=True, text=True, check=False,
    )
    assert checked.stdout == f"{known['outputFilename']}: OK\n", checked
    accessible(page, "a job")
    page.goto(f"{service.url}/#/jobs/nobody")
    watch.expected = ["Failed to load resource.*404"]
    expect(page.get_by_text("RETAIN_JOBS")).to_be_visible()


def test_the_form_starts_any_export(watch, service):
    page = watch.page
    page.goto(service.url)
    page.get_by_role("button", name="New export").click()
    form = page.get_by_role("dialog")
    expect(form.get_by_label("Consumer")).to_be_focused()
    expect(form.get_by_label("delta")).to_be_disabled()
    form.get_by_label("Consumer").fill("no good")
    form.get_by_role("button", name="Start").click()
    expect(form.get_by_role("alert")).to_contain_text("A consumer id has")
    accessible(page, "the form")
    form.get_by_label("Consumer").fill("search:eu@1")
    form.get_by_label("incremental").check()
    form.get_by_label("Format").select_option("parquet")
    expect(form.get_by_label("Compression")).to_be_disabled()
    form.get_by_label("Format").select_option("ndjson")
    form.get_by_label("Compression").select_option("zstd")
    command = form.locator("pre code").text_content()
    assert """-d '{"format":"ndjson","compression":"zstd"}'""" in command, command
    form.get_by_role("button", name="Start").click()
    expect(form).to_be_hidden()
    first = job_rows(page).first
    expect(first).to_contain_text("search:eu@1")
    expect(first).to_contain_text("ndjson, zstd")
    expect(first).to_have_attribute("data-status", "completed")
    job = service.call("GET", "/exports?limit=1")["items"][0]
    assert (job["consumerId"], job["exportType"]) == ("search:eu@1", "incremental"), job
    with page.expect_download() as download:
        first.get_by_role("link", name="Download").click()
    assert saved(download.value) == job["sha256"]


def test_an_answer_that_was_lost_makes_no_second_job(watch, service):
    page = watch.page
    watch.expected = ["Failed to load resource", "ERR_FAILED"]
    page.goto(service.url)
    names = []

    def lose(route):
        names.append(route.request.headers.get("idempotency-key"))
        if len(names) == 1:
            route.fetch()
            route.abort()
        else:
            route.continue_()

    answered_by(page, "**/exports/delta", lose)
    before = len(service.call("GET", "/exports?limit=200")["items"])
    row = consumer_row(page, "consumer-1")
    row.get_by_role("button", name="delta").click()
    expect(row.get_by_role("alert")).to_have_text("the service gave no answer")
    row.get_by_role("button", name="delta").click()
    expect(row.get_by_role("alert")).to_be_hidden()
    wait_for("both were sent", lambda: len(names) == 2)
    assert names[0] == names[1] and len(names[0]) > 20, names
    assert len(service.call("GET", "/exports?limit=200")["items"]) == before + 1


def test_filters_and_pages(watch, service):
    page = watch.page
    for _ in range(13):
        service.export("delta", "consumer-1")
        service.export("delta", "consumer-2")
    page.goto(service.url)
    expect(job_rows(page)).to_have_count(25)
    page.get_by_role("button", name="Show older exports").click()
    wait_for("more of them", lambda: job_rows(page).count() > 30)
    ids = job_rows(page).evaluate_all("rows => rows.map(row => row.dataset.job)")
    assert ids == [job["jobId"] for job in service.call("GET", "/exports?limit=200")["items"]][: len(ids)]
    page.get_by_label("Consumer", exact=True).fill("consumer-2")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{service.url}/#/?consumer=consumer-2")
    # The first of a consumer has all rows, and so a column of its own in the chart.
    expect(job_rows(page)).to_have_count(13)
    page.get_by_label("Type").select_option("full")
    expect(page.get_by_text("No export is like that")).to_be_visible()
    page.get_by_role("link", name="All exports").click()
    expect(job_rows(page)).to_have_count(25)
    # A link to what can't be is told by the service's own words, and is no trouble of the connection.
    watch.expected = ["Failed to load resource.*400"]
    page.goto(f"{service.url}/#/?consumer=no%20good")
    expect(page.get_by_text("consumer: a consumer id has")).to_be_visible()
    expect(page.locator("#banner")).to_be_hidden()


def test_a_list_longer_than_an_answer(watch, service):
    page = watch.page
    template = service.call("GET", "/exports?limit=1")["items"][0]
    made = [{**template, "jobId": f"{n:08}-0000-7000-8000-000000000000", "consumerId": f"c{n}"} for n in range(400, 0, -1)]

    def answer(route):
        query = dict(part.split("=") for part in route.request.url.split("?")[1].split("&"))
        limit, cursor = int(query["limit"]), query.get("cursor")
        assert limit <= 200, limit
        begin = 0 if cursor is None else next(i for i, job in enumerate(made) if job["jobId"] == cursor) + 1
        items = made[begin : begin + limit]
        more = begin + limit < len(made)
        route.fulfill(json={"items": items, "nextCursor": items[-1]["jobId"] if more else None})

    answered_by(page, "**/exports?*", answer)
    page.goto(service.url)
    for shown in range(25, 300, 25):
        expect(job_rows(page)).to_have_count(shown)
        page.get_by_role("button", name="Show older exports").click()
    expect(job_rows(page)).to_have_count(300)
    # New ones come on top, and nothing is lost where the two parts meet.
    made[:0] = [{**template, "jobId": f"{n:08}-0000-7000-8000-000000000000", "consumerId": f"c{n}"} for n in range(430, 400, -1)]
    asked_again(page)
    expect(job_rows(page).first).to_contain_text("c430")
    ids = job_rows(page).evaluate_all("rows => rows.map(row => row.dataset.job)")
    assert ids == [job["jobId"] for job in made[: len(ids)]] and len(ids) == 330, len(ids)


def test_the_chart_by_keyboard_and_in_figures(watch, service):
    page = watch.page
    page.goto(service.url)
    columns = page.locator(".picture a")
    expect(columns.first).to_be_attached()
    done = [job for job in service.call("GET", "/exports?status=completed&limit=40")["items"]]
    assert columns.count() == len(done)
    columns.last.focus()
    readout = page.locator(".readout")
    expect(readout).to_contain_text("delta export of users")
    page.keyboard.press("Home")
    oldest = done[-1]
    expect(columns.first).to_be_focused()
    expect(readout).to_contain_text(f"{oldest['rowsExported']:,} row")
    page.get_by_text("In figures", exact=True).click()
    expect(page.get_by_role("table", name="The same in figures").get_by_role("row")).to_have_count(len(done) + 1)
    page.keyboard.press("Home")
    columns.first.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{service.url}/#/jobs/{oldest['jobId']}")


def test_a_failure_says_what_to_do(watch, service):
    page = watch.page
    service.sql("delete from users where id = 44; truncate users")
    page.goto(service.url)
    row = consumer_row(page, "consumer-1")
    expect(row).to_contain_text("truncated")
    expect(row).to_contain_text("deltas need a full export first")
    row.get_by_role("button", name="delta").click()
    first = job_rows(page).first
    expect(first).to_have_attribute("data-status", "failed")
    expect(first).to_contain_text("full_export_needed")
    first.get_by_role("link", name="delta users").click()
    expect(page.get_by_text("Start a full export: it is always exact")).to_be_visible()
    accessible(page, "a failure")
    service.export("full", "consumer-1")


def test_hostile_texts_are_texts(watch, service):
    page = watch.page
    job = service.call("GET", "/exports?status=failed&limit=1")["items"][0]["jobId"]
    quoted = HOSTILE.replace("'", "''")
    service.sql(f"update exports set error_detail = '{quoted}' where id = '{job}'")
    page.goto(f"{service.url}/#/jobs/{job}")
    expect(page.locator(".failure")).to_contain_text(HOSTILE)
    # No name of ours can be hostile; another version's may, or a proxy's.
    names = ("consumerId", "dataset", "name", "outputFilename", "continuity", "code", "detail")

    def soil(route):
        def soiled(value, name=None):
            if isinstance(value, dict):
                return {key: soiled(one, key) for key, one in value.items()}
            if isinstance(value, list):
                return [HOSTILE] if name == "problems" else [soiled(one) for one in value]
            return HOSTILE if name in names else False if name == "ready" else value

        route.fulfill(json=soiled(route.fetch().json()))

    answered_by(page, re.compile(r".*/(consumers|datasets|exports)(\?.*)?$"), soil)
    page.goto(f"{service.url}/#/")
    expect(consumer_row(page, HOSTILE).first).to_be_visible()
    expect(page.get_by_label("Datasets that can't be exported now")).to_contain_text(HOSTILE)
    expect(job_rows(page).first).to_contain_text(HOSTILE)
    page.get_by_role("button", name="New export").click()
    expect(page.get_by_role("dialog")).to_contain_text(HOSTILE)
    assert page.locator("main img, main script, dialog img, dialog script").count() == 0
    assert page.title() == "cdc-export"
    # What forbids it is the page's policy too, not only its care.
    refused = page.evaluate("() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch (e) { return e.name } }")
    assert refused == "TypeError", refused
    watch.expected = ["policy: require-trusted-types-for", "TrustedHTML"]


def test_the_page_is_quiet(watch, service):
    page = watch.page
    page.clock.install()
    page.goto(service.url)
    expect(job_rows(page).first).to_be_visible()
    expect(consumer_row(page, "consumer-1")).to_be_visible()

    def asked_in(seconds):
        before = len(watch.requests)
        for _ in range(seconds):
            page.clock.run_for(1000)
            # An answer takes its real time.
            page.wait_for_timeout(10)
        return [url.removeprefix(service.url) for _, _, url in watch.requests[before:]]

    minute = asked_in(60)
    assert 5 <= sum(url.startswith("/exports") for url in minute) <= 7 and len(minute) <= 12, minute
    # What nobody sees is not kept fresh.
    page.evaluate(
        """() => { Object.defineProperty(document, 'hidden', { value: true, configurable: true });
                   document.dispatchEvent(new Event('visibilitychange')); }"""
    )
    assert asked_in(60) == []
    before = len(watch.requests)
    page.evaluate(
        """() => { Object.defineProperty(document, 'hidden', { value: false, configurable: true });
                   document.dispatchEvent(new Event('visibilitychange')); }"""
    )
    wait_for("it is asked for again", lambda: page.evaluate("1") and len(watch.requests) > before)
    asked_in(1)
    back = watch.requests[before:]
    assert "/exports?" in back[0][2] and len(back) <= 4, back


def test_by_keyboard_alone(watch, service):
    page = watch.page
    page.goto(service.url)
    expect(job_rows(page).first).to_be_visible()

    def tab_to(words, key="Tab"):
        for _ in range(60):
            page.keyboard.press(key)
            name = page.evaluate("document.activeElement.textContent.trim() + ' ' + (document.activeElement.id || '')")
            seen = page.evaluate(
                "(() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2 })()"
            )
            assert seen, f"the focus can't be seen on: {name}"
            if re.search(words, name):
                return name
        raise AssertionError(f"no {words} by Tab")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    tab_to("^New export")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.type("by-keyboard")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="New export")).to_be_focused()
    expect(job_rows(page).first).to_contain_text("by-keyboard")
    expect(job_rows(page).first).to_have_attribute("data-status", "completed")
    expect(consumer_row(page, "by-keyboard")).to_be_visible()
    tab_to("delta export of users for by-keyboard")
    page.keyboard.press("Enter")
    expect(job_rows(page).first).to_contain_text("delta users")
    expect(job_rows(page).first).to_have_attribute("data-status", "completed")
    # The row was kept up to date meanwhile, and the focus with it.
    assert "delta" in page.evaluate("document.activeElement.textContent")
    tab_to("^delta users")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Delta export of users, for by-keyboard")
    tab_to("^← All exports", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(job_rows(page).first).to_be_visible()
    tab_to("^New export", "Shift+Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_narrow_light_and_dark(watch, service):
    page = watch.page
    page.set_viewport_size({"width": 400, "height": 860})
    # As long as a name may be, with no place to break it.
    service.export("full", "x" * 128)
    failed = service.call("GET", "/exports?status=failed&limit=1")["items"][0]["jobId"]
    done = service.call("GET", "/exports?status=completed&limit=1")["items"][0]["jobId"]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for where in ("/#/", f"/#/jobs/{failed}", f"/#/jobs/{done}"):
            page.goto(service.url + where)
            expect(page.locator(".badge").first).to_be_visible()
            for width in (320, 960, 961, 1024, 1280, 400):
                page.set_viewport_size({"width": width, "height": 860})
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, f"{where} is {wide} wide at {width}, {scheme}"
            accessible(page, f"{where} at 400, {scheme}")
        page.goto(service.url)
        page.get_by_role("button", name="New export").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        accessible(page, f"the form at 400, {scheme}")
        page.set_viewport_size({"width": 1280, "height": 900})
        page.keyboard.press("Escape")
        accessible(page, f"the overview at 1280, {scheme}")
        page.set_viewport_size({"width": 400, "height": 860})
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", ground))) < 60, ground


def test_the_database_goes_away(watch, service):
    page = watch.page
    watch.expected = ["Failed to load resource.*503"]
    page.goto(service.url)
    expect(page.locator("#connection")).to_have_text("live")
    service.sql(
        "alter database cdc_export allow_connections false;"
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'cdc_export'",
        "postgres",
    )
    try:
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        expect(page.locator("#banner-title")).to_have_text(re.compile(r"Its database is away since \d\d:\d\d:\d\d UTC"))
        expect(page.locator("#banner-count")).to_contain_text("Trying again")
        accessible(page, "without a database")
    finally:
        service.sql("alter database cdc_export allow_connections true", "postgres")
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#connection")).to_have_text("live")


def test_the_service_goes_away_and_comes_back(watch, service):
    page = watch.page
    watch.expected = ["Failed to load resource.*ERR_CONNECTION", "request: net::ERR_(CONNECTION|EMPTY|INCOMPLETE|SOCKET)", "ERR_INCOMPLETE", "ERR_EMPTY"]
    page.goto(service.url)
    expect(page.locator("#connection")).to_have_text("live")
    row = consumer_row(page, "consumer-1")
    expect(row).to_be_visible()
    rows = job_rows(page).count()
    service.stop(signal.SIGKILL)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#banner-title")).to_have_text(re.compile(r"^Not reachable since \d\d:\d\d:\d\d UTC\.$"))
    expect(page.locator("#banner-count")).to_have_text(re.compile(r"Trying again (in \d+ s\.|…)"))
    expect(page.locator("#connection")).to_have_text(re.compile("^as of "))
    # What is known stays, marked as old, and what is asked for says that it wasn't done.
    assert job_rows(page).count() == rows
    expect(page.locator("body")).to_have_class("stale")
    expect(page.locator("#said")).to_contain_text("Not reachable since")
    accessible(page, "without a service")
    row.get_by_role("button", name="delta").click()
    expect(row.get_by_role("alert")).to_have_text("the service gave no answer")
    asked = len(watch.requests)
    page.wait_for_timeout(3000)
    assert len(watch.requests) - asked <= 3, "it asks ever more rarely"
    service.start()
    expect(page.locator("#banner")).to_be_hidden(timeout=35_000)
    expect(page.locator("#connection")).to_have_text("live")
    # The click whose answer was lost, clicked again.
    row.get_by_role("button", name="delta").click()
    expect(row.get_by_role("alert")).to_be_hidden()
    expect(job_rows(page).first).to_have_attribute("data-status", "completed")


def test_keys(watch, service):
    page = watch.page
    watch.expected = ["Failed to load resource.*40[13]"]
    service.stop()
    service.start(AUTH="keys")
    keys = {
        "all": service.command("keys", "create", "--name", "all").strip(),
        "reader": service.command("keys", "create", "--name", "reader", "--scope", "export:read").strip(),
    }
    page.goto(service.url)
    dialog = page.get_by_role("dialog", name="A key is needed")
    expect(dialog).to_be_visible()
    accessible(page, "the question for a key")
    dialog.get_by_label("Key").fill("cdcx_000000000000_" + "0" * 64)
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog.get_by_role("alert")).to_contain_text("key")
    expect(page.locator("#banner-title")).to_have_text("A key is needed.")

    # One that may only read.
    dialog.get_by_label("Key").fill(keys["reader"])
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    row = consumer_row(page, "consumer-1")
    row.get_by_role("button", name="full").click()
    expect(row.get_by_role("alert")).to_contain_text("this key is not for that: it lacks export:write")
    job = service.call("GET", "/exports?status=completed&limit=1", {"Authorization": f"Bearer {keys['reader']}"})["items"][0]
    # By the memory where the browser can't write files, by a file where it can.
    page.evaluate("delete window.showSaveFilePicker")
    done = page.locator(f"tr[data-job='{job['jobId']}']")
    with page.expect_download() as download:
        done.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == job["outputFilename"]
    assert saved(download.value) == job["sha256"]
    page.evaluate(
        """() => { window.showSaveFilePicker = async ({ suggestedName }) =>
                     (await navigator.storage.getDirectory()).getFileHandle(suggestedName, { create: true }); }"""
    )
    page.evaluate("document.getElementById('said').textContent = ''")
    done.get_by_role("button", name="Download").click()
    expect(page.locator("#said")).to_have_text(f"{job['outputFilename']} is saved")
    written = page.evaluate(
        """async (name) => { const folder = await navigator.storage.getDirectory();
                             const file = await (await folder.getFileHandle(name)).getFile();
                             const hash = await crypto.subtle.digest('SHA-256', await file.arrayBuffer());
                             return Array.from(new Uint8Array(hash), (b) => b.toString(16).padStart(2, '0')).join(''); }""",
        job["outputFilename"],
    )
    assert written == job["sha256"]

    # What no memory holds is refused, with the way that works.
    page.evaluate("delete window.showSaveFilePicker")

    def grown(route):
        answer = route.fetch()
        listed = answer.json()
        for listed_job in listed["items"]:
            listed_job["bytesWritten"] = 10_000_000_000
        route.fulfill(json=listed)

    answered_by(page, "**/exports?*", grown)
    page.reload()
    page.evaluate("delete window.showSaveFilePicker")
    done.get_by_role("button", name="Download").click()
    expect(done.get_by_role("alert")).to_contain_text("10 GB are too much for this browser to hold; by hand: curl -H")
    page.unroute("**/exports?*")

    # It is this tab's, and nowhere but there.
    kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, JSON.stringify(Object.values(sessionStorage))]")
    assert kept == ["{}", "", json.dumps([keys["reader"]])], kept
    page.reload()
    expect(row).to_be_visible()
    done.get_by_role("link").first.click()
    expect(page.locator(".command code").first).to_contain_text('"Authorization: Bearer $CDC_EXPORT_KEY"')
    assert keys["reader"] not in page.content()
    page.get_by_role("link", name="← All exports").click()

    # Revoked while it is in use.
    service.command("keys", "revoke", "reader")
    wait_for("it is found out", lambda: asked_again(page) and dialog.is_visible())
    expect(dialog.get_by_role("alert")).to_contain_text("key")
    assert page.evaluate("sessionStorage.length") == 0
    dialog.get_by_label("Key").fill(keys["all"])
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    row.get_by_role("button", name="delta").click()
    expect(job_rows(page).first).to_have_attribute("data-status", "completed")
    with service.held():
        row.get_by_role("button", name="full").click()
        job_rows(page).first.get_by_role("link").first.click()
        expect(page.locator(".badge").first).to_have_text("processing")
    expect(page.locator(".badge").first).to_have_text("completed")
    page.get_by_role("button", name=re.compile("Forget key cdcx_[0-9a-f]{12}$")).click()
    expect(dialog).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_limit_of_requests_makes_it_slower(watch, service):
    page = watch.page
    watch.expected = ["Failed to load resource.*429"]
    service.stop()
    # The page's own files are requests too.
    service.start(RATE_LIMIT="60/h")
    page.goto(service.url)
    expect(job_rows(page).first).to_be_visible()
    wait_for("the allowance is used up", lambda: limited(service))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#banner-title")).to_have_text("Too many requests.")
    expect(page.locator("#banner-count")).to_have_text(re.compile(r"Trying again in \d+ s\."))
    # Its own wish to ask at once waits too.
    asked = len(watch.requests)
    page.get_by_role("button", name="Try now").click()
    page.wait_for_timeout(1500)
    assert len(watch.requests) == asked, watch.requests[asked:]


def answered_by(page, addresses, answer):
    """Has `answer` answer what the page asks of these addresses."""

    def answered(route):
        # A page that is left or loaded anew meanwhile has dropped its question: nobody is there to be answered.
        with contextlib.suppress(Error):
            answer(route)

    page.route(addresses, answered)


def asked_again(page):
    """Has the page ask for its data now, as for who comes back to it."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(500)
    return True


def limited(service):
    try:
        service.call("GET", "/exports?limit=1")
    except urllib.error.HTTPError as error:
        return error.code == 429
    return False


def pictures(browser, service, folder):
    """page.png, page-narrow.png and page-job.png, of a service that has done something."""
    users = """insert into users (name, email, created_at, updated_at)
               select 'User ' || n, 'user' || n || '@example.com', t, t
               from generate_series(1, 48000) n, lateral (select now() - interval '7 h' - n * interval '1 s' as t) x"""
    change = "update users set updated_at = now() - interval '{} min' where id % {} = 0"
    service.export("full", "archive")
    service.sql("truncate users;" + users)
    job = service.call("POST", "/exports/delta", {"X-Consumer-ID": "archive"})["jobId"]
    service.call("GET", f"/exports/{job}?wait=60")
    for consumer in ("search", "warehouse"):
        service.export("full", consumer)
    parts = (90, 40, 300, 17, 60, 25, 500, 12, 33, 70, 21, 45)
    for place, part in enumerate(parts):
        service.sql(change.format((len(parts) - place) * 29, part))
        service.export("delta" if part % 2 == 0 else "incremental", "search")
        if part % 5 == 0:
            service.export("delta", "warehouse")
    service.sql(change.format(3, 130))
    # The exports of an afternoon, not of a minute.
    service.sql(
        """update exports e set created_at = e.created_at - away, started_at = e.started_at - away,
             finished_at = e.finished_at - away
           from (select id, row_number() over (order by created_at desc) * interval '17 min' as away from exports) o
           where o.id = e.id"""
    )
    service.stop()
    service.start(FAILPOINTS="sink.write=sleep:60000@14")
    running = service.call("POST", "/exports/full", {"X-Consumer-ID": "warehouse"})["jobId"]
    wait_for("it is in its middle", lambda: service.call("GET", f"/exports/{running}")["progress"] > 20)
    for name, width, height, scheme, where in (
        ("page", 1280, 800, "light", "#/"),
        ("page-narrow", 400, 860, "light", "#/"),
        ("page-job", 1280, 840, "dark", f"#/jobs/{running}"),
    ):
        watch = Watched(browser, service, viewport={"width": width, "height": height}, color_scheme=scheme)
        watch.page.goto(f"{service.url}/{where}")
        expect(watch.page.locator("#connection")).to_have_text("live")
        expect(watch.page.get_by_role("progressbar").first).to_be_visible()
        watch.page.wait_for_timeout(1000)
        watch.page.screenshot(path=f"{folder}/{name}.png")
        watch.close()
    service.call("POST", f"/exports/{running}/cancel")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--chromium", required=True)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--pictures", metavar="FOLDER")
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    chosen = [(n, t) for n, t in tests if not options.words or any(word in n for word in options.words)]
    service = Service(options.binary)
    expect.set_options(timeout=PATIENCE)
    begun = time.monotonic()
    failed = []
    try:
        # The first export stops in its middle, for the tour to see it there.
        service.start(**({} if options.pictures else {"FAILPOINTS": "sink.write=sleep:4000@12"}))
        with sync_playwright() as playwright:
            arguments = ARGUMENTS + (["--no-sandbox"] if os.getuid() == 0 else [])
            browser = playwright.chromium.launch(executable_path=options.chromium, args=arguments)
            if options.pictures:
                pictures(browser, service, options.pictures)
                return 0
            for name, test in chosen:
                watch = Watched(browser, service)
                started = time.monotonic()
                try:
                    test(watch, service)
                    watch.close()
                    verdict = "ok"
                except Exception:  # noqa: BLE001, whatever it is: the others are run all the same
                    print("\n".join(traceback.format_exc(limit=2).splitlines()[:24]), file=sys.stderr)
                    verdict = "FAILED"
                    failed.append(name)
                    with contextlib.suppress(Exception):
                        print(watch.complaints, file=sys.stderr)
                        watch.page.screenshot(path=f"{tempfile.gettempdir()}/{name}.png", full_page=True)
                        watch.context.close()
                print(f"{name[5:].replace('_', ' ')}: {verdict}, {time.monotonic() - started:.1f} s", flush=True)
            browser.close()
    finally:
        service.stop()
        shutil.rmtree(service.folder)
    print(f"{len(chosen)} tests, {len(failed)} failed, {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
