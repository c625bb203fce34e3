"""Provides the page's tests with the service, a watched page of a browser, and the search for its rows."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error

ROWS = 50_000
PATIENCE = 20_000


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
        """The command line of a psql."""
        place = (self.folder / "data/postgres/postmaster.pid").read_text().splitlines()[4]
        return ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", place, "-U", "postgres", database]

    def sql(self, statements, database="cdc_export"):
        command = self.psql(database)
        done = subprocess.run(command, input=statements, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def held(self):
        """A lock that no export gets past, for the 5 seconds that it waits."""
        holder = subprocess.Popen(self.psql(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
        self.unanswered = 0
        self.host = f"127.0.0.1:{service.port}"
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"page: {error}"))
        self.page.on("request", self._request)
        self.page.on("requestfailed", self._failed)
        self.page.on("requestfinished", self._finished)
        self.context.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error('policy: ' + e.violatedDirective + ' ' + e.blockedURI))"
        )

    def _console(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text} {message.location.get('url')}")

    def _request(self, request):
        self.requests.append((time.monotonic(), request.method, request.url))
        self.unanswered += 1
        if not request.url.startswith((f"http://{self.host}/", f"blob:http://{self.host}/", "data:")):
            self.complaints.append(f"another host: {request.url}")
        assert "cdcx_" not in request.url, "a key in a URL"

    def _finished(self, request):
        self.unanswered -= 1

    def asked_in(self, seconds, each=lambda second: None):
        """Returns the page's requests in this time of its own clock, which must be installed. Every answer comes at once."""
        before = len(self.requests)
        for second in range(seconds):
            each(second)
            for _ in range(2):
                self.page.clock.run_for(500)
                wait_for("all is answered", lambda: self.page.evaluate("new Promise((go) => go(1))") and self.unanswered <= 0)
        return [url for _, _, url in self.requests[before:]]

    def _failed(self, request):
        self.unanswered -= 1
        # A view that goes away drops what it asked for, and a download is no page.
        if request.failure not in ("net::ERR_ABORTED",):
            self.complaints.append(f"request: {request.failure} {request.url}")

    def close(self):
        complaints = [c for c in self.complaints if not any(re.search(e, c) for e in self.expected)]
        self.context.close()
        assert not complaints, complaints


def accessible(page, where, **options):
    """That axe finds nothing that keeps somebody out."""
    found = Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
    told = [f"{v['id']}: {v['help']}: {[n['html'][:160] + ' ' + n['failureSummary'] for n in v['nodes']][:3]}" for v in found]
    assert not told, f"{where}: {told}"


def job_rows(page):
    return page.locator("tr[data-job]")


def consumer_row(page, name):
    return page.get_by_role("table", name="Consumers and where they stand").get_by_role("row").filter(has_text=name)


def saved(download):
    path = pathlib.Path(download.path())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def asked(page, row, kind):
    """The form for an export of this kind, by its consumer's row, once it is sent."""
    row.get_by_role("button", name="Export").click()
    form = page.get_by_role("dialog", name="New export")
    form.get_by_role("radio", name=kind).check()
    form.get_by_role("button", name="Start", exact=True).click()
    return form


def start(page, row, kind):
    """Starts an export so, and says yes to what the page asks. The form stays if it was refused."""
    form = asked(page, row, kind)
    page.get_by_role("button", name="Start it").click()
    return form


def started(page, row, kind):
    """The row of the export that is started so."""
    with page.expect_response(lambda answer: answer.request.method == "POST") as answer:
        start(page, row, kind)
    return page.locator(f"tr[data-job='{answer.value.json()['jobId']}']")


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
