"""A proxy before the service that edits answers, cuts downloads, and may not know `Range`."""

import http.client
import http.server
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Faults:
    """What the proxy does to the next answers."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []
        self.cut_after: int | None = None
        self.ignores_range = False
        # As a proxy in maintenance: with a page, and a date to come back.
        self.is_down = False
        self.edit: Callable[[str, bytes], bytes] = lambda path, content: content


@contextmanager
def proxy(service_url: str) -> Iterator[tuple[str, Faults]]:
    faults = Faults()

    class Handler(http.server.BaseHTTPRequestHandler):
        def forward(self) -> None:
            if faults.is_down:
                self.send_response(503)
                self.send_header("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT")
                self.end_headers()
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            is_download = "/download" in self.path
            if is_download:
                faults.ranges.append(self.headers["Range"])
                if faults.ignores_range:
                    headers.pop("Range", None)
            service = http.client.HTTPConnection(urllib.parse.urlsplit(service_url).netloc)
            service.request(self.command, self.path, body, headers)
            answer = service.getresponse()
            content = faults.edit(self.path, answer.read())
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            if is_download and faults.cut_after is not None:
                content, faults.cut_after = content[: faults.cut_after], None
            self.wfile.write(content)

        do_GET = do_POST = forward  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        server.server_close()
