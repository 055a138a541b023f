"""A real browser without a window, and the way from it to an agent that listens on a Unix socket.

The browser is Debian's Chromium, driven by playwright. What it complains about is kept: nothing of the project's own
may make it complain.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright

from tests.support.programs import need

# As root its sandbox does not start; a small /dev/shm of a container would end it. It asks nobody for anything.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
WIDE = ViewportSize(width=1280, height=900)
PHONE = ViewportSize(width=380, height=800)
START_WITHIN_MS = 50_000  # of a busy machine; it takes half a second
ANSWER_WITHIN_MS = 30_000  # an open page asks every 5 s


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Chromium, for the time of a `with` block."""
    program = need("chromium")
    expect.set_options(timeout=ANSWER_WITHIN_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS, timeout=START_WITHIN_MS)
        try:
            yield started
        finally:
            started.close()


class Visit:
    """One page in a context of its own, and everything that the browser told of it."""

    def __init__(self, context: BrowserContext) -> None:
        self.complaints: list[str] = []  # errors and warnings of the console, policy violations, exceptions
        self.requests: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(ANSWER_WITHIN_MS)
        self.page.on("console", lambda told: self._complain(told.type, told.text))
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{kind}: {text}")


@contextlib.contextmanager
def visit(started: Browser, **options: Any) -> Iterator[Visit]:
    """A visit with a profile of its own; `options` are those of playwright's new_context."""
    context = started.new_context(**{"viewport": WIDE, "timezone_id": "UTC", **options})
    try:
        yield Visit(context)
    finally:
        context.close()


def artefacts(base: Path) -> Path:
    """Where pictures are kept: TOMBSYNC_ARTEFACTS, or else below `base`."""
    directory = Path(os.environ.get("TOMBSYNC_ARTEFACTS") or base / "artefacts")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    unix_path: str


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as behind:
            try:
                behind.connect(cast(_Server, self.server).unix_path)
            except OSError:  # nobody is there: the browser sees a connection that ends at once
                return
            back = threading.Thread(target=_pump, args=(behind, self.request), daemon=True)
            back.start()
            _pump(self.request, behind)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def in_front_of(unix_path: Path) -> Iterator[str]:
    """A TCP port on loopback that leads to a Unix socket: its origin, `http://127.0.0.1:PORT`."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.unix_path = str(unix_path)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
