"""`lsam report RUN --live`: serve one page on this machine that shows a run while its job runs."""

from __future__ import annotations

import errno
import json
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lsam_hpc.errors import InputError
from lsam_hpc.tools.live_ranks import LiveRun
from lsam_hpc.util.interrupts import interrupts, sleep

INTERVAL = 2.0  # s between two looks at the run, at least
PAGES = 8  # looks at other ranks that are kept, for as many pages
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(path: Path, port: int, *, quiet: bool = False) -> int:
    """Serve the page until Ctrl-C; return the exit code.

    Args:
        path: the run directory.
        port: to listen at; 0: a free one.
        quiet: print the address only. Default False.

    Raises:
        InputError: there is no such run, or the port cannot be used.
    """
    server = LiveServer(path, port)
    thread = threading.Thread(target=server.serve_forever, name="lsam-live", daemon=True)
    try:
        with server, interrupts() as receiver:
            thread.start()
            print(server.url if quiet else f"{path}: {server.url} (Ctrl-C ends it)", flush=True)
            sleep(None, receiver)
            server.shutdown()
    except KeyboardInterrupt:
        pass
    if not quiet:
        print(f"\n{server.url}: no longer served; the run was not touched", flush=True)
    return 0


class LiveServer(ThreadingHTTPServer):
    """Answers requests of this machine for the page and its data, and nothing else.

    Args:
        path: the run directory.
        port: to listen at; 0: a free one.

    Raises:
        InputError: there is no such run, or the port cannot be used.
    """

    daemon_threads = True

    def __init__(self, path: Path, port: int) -> None:
        if not 0 <= port < 2**16:
            raise InputError(f"--port: expected 0 to {2**16 - 1}, found {port}")
        self._run = LiveRun(path)
        self._lock = threading.Lock()
        self._looks: dict[int, tuple[float, dict[str, Any]]] = {}
        self.page = (files("lsam_hpc.landscape.report") / "live.html").read_bytes()
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            found = "one in use" if error.errno == errno.EADDRINUSE else f"{error.strerror}"
            raise InputError(f"--port: expected a free port, found {port}: {found}") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"

    def data(self, first: int) -> bytes:
        """Return what the page shows, JSON; several pages do not make the run be read more often."""
        with self._lock:
            now = time.monotonic()
            at, seen = self._looks.get(first, (-1e9, {}))
            if not seen or seen["behind"] or now - at > max(INTERVAL / 2, seen["seconds"]):
                try:
                    seen = self._run.look(first)
                except InputError as error:  # the directory was removed or is on a disk that fails
                    seen = {"error": str(error), "behind": False, "seconds": 0.0}
                self._looks.pop(first, None)
                self._looks[first] = time.monotonic(), seen
                if len(self._looks) > PAGES:
                    del self._looks[next(iter(self._looks))]
            # Long looks are followed by pauses of the same length, to leave the machine to the run.
            again = 0.05 if seen["behind"] else max(INTERVAL, seen["seconds"])
            return json.dumps({**seen, "again": again}, allow_nan=False).encode()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: LiveServer
    server_version, sys_version = "lsam", ""
    timeout = 60.0  # s that a connection may be idle

    def do_GET(self) -> None:
        """Answer with the page or its data."""
        # A page of another site whose name leads to this machine must not read the run.
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in ("127.0.0.1", "localhost", "::1"):
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"open the page as 127.0.0.1 or localhost\n")
            return
        path, _, query = self.path.partition("?")
        if path == "/" and not query:
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        elif path == "/data":
            first = parse_qs(query).get("first", ["0"])[0]
            self._answer(HTTPStatus.OK, "application/json", self.server.data(int(first) if first.isdecimal() else 0))
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is only one page here: /\n")

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self.do_GET()

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def handle(self) -> None:
        """Handle requests; a browser may leave at any time."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True
