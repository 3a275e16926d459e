"""`isoflop watch`: what is known of a study or a run that still goes on, on this machine, for whoever has the token."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from isoflop.errors import StudyError
from isoflop.report.watch.page import page, snapshot
from isoflop.report.watch.run import LiveRun, run_page, run_snapshot
from isoflop.report.watch.state import Live

HOST = "127.0.0.1"
UNASKED = 30.0
"""Seconds without a question after which the folder is no longer looked at."""
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Watch:
    """A server of one live page, a study's or a run's; a context manager. Without the token in `url` it says nothing.

    Args:
        directory: the folder of the study or the run; it is only read.
        port: 0 takes any free one.
        every: seconds between two looks at the folder.

    Raises StudyError when the folder is neither or the port is taken.
    """

    def __init__(self, directory: Path, *, port: int = 0, every: float = 1.0) -> None:
        is_study = (directory / "study.json").is_file()
        self._live: Live | LiveRun = Live(directory) if is_study else LiveRun(directory)
        self._every = every
        self._token = secrets.token_urlsafe(24)
        self._stop = threading.Event()
        self._asked = time.monotonic()
        self._latest: tuple[int, bytes] = (-1, b"{}")
        self._page = (page if is_study else run_page)(directory).encode()
        try:
            self._server = ThreadingHTTPServer((HOST, port), _handler(self._respond))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise StudyError(f"cannot watch on port {port}: {reason}; choose another with --port") from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://{HOST}:{self.port}/?token={self._token}"

    def __enter__(self) -> Watch:
        self._look()
        for work in (self._server.serve_forever, self._keep_looking):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()

    def _keep_looking(self) -> None:
        spent = 0.0
        # The study needs the cores more: looking takes a tenth of one at most, and nothing while nobody asks.
        while not self._stop.wait(max(self._every, 9 * spent)):
            if time.monotonic() - self._asked < UNASKED:
                began = time.thread_time()
                self._look()
                spent = time.thread_time() - began

    def _look(self) -> None:
        """One look at the folder. Whatever is wrong with it is for the page to say: the watch goes on."""
        try:
            if self._live.refresh():
                shown = snapshot(self._live) if isinstance(self._live, Live) else run_snapshot(self._live)
                text = json.dumps(shown, allow_nan=False, separators=(",", ":"))
                self._latest = (self._live.version, text.encode())
        except Exception as error:
            message = {"version": -1, "trouble": f"{type(error).__name__}: {error}"}
            self._latest = (-2, json.dumps(message).encode())

    def _respond(self, path: str, host: str) -> tuple[int, str, bytes]:
        """(status, content type, body) for a request."""
        # A page of another site that makes its own name point here sends that name as the host.
        if host not in (f"{HOST}:{self.port}", f"localhost:{self.port}"):
            return 403, "text/plain", b"this server answers on its own address only\n"
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        if not hmac.compare_digest(query.get("token", [""])[0].encode(), self._token.encode()):
            return 403, "text/plain", b"open the address that `isoflop watch` printed, with its token\n"
        if parts.path == "/":
            return 200, "text/html; charset=utf-8", self._page
        if parts.path == "/data":
            self._asked = time.monotonic()
            version, body = self._latest
            if query.get("since", [""])[0] == str(version):
                return 204, "application/json", b""
            return 200, "application/json", body
        return 404, "text/plain", b"there is nothing here\n"


def watch(
    directory: Path,
    *,
    port: int = 0,
    say: Callable[[str], Any] = print,
    opened: Callable[[str], Any] = lambda url: None,
) -> None:
    """Serve the live page of the study or run in `directory` until interrupted.

    `say` gets lines for people, `opened` the bare address.
    """
    with Watch(directory, port=port) as server:
        opened(server.url)
        say(f"watching {directory}\nopen {server.url}\nCtrl-C ends the watch, not the training")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            say("\nno longer watching")


def _handler(respond: Callable[[str, str], tuple[int, str, bytes]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """GET only (anything else is 501 by the base class), one request a connection: none outlives the watch."""

        server_version, sys_version = "isoflop", ""
        timeout = 30

        def do_GET(self) -> None:
            status, kind, body = respond(self.path, self.headers.get("Host", ""))
            self.send_response(status)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Silence: the token must not end in a log."""

    return Handler
