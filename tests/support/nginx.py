"""A real nginx on loopback, with the snippets of systemd/nginx, in a directory of its own and without privileges."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.support.programs import need
from tests.support.relay import free_port
from tests.support.waiting import wait_for

SNIPPETS = Path(__file__).parents[2] / "systemd" / "nginx"
NOBODY = 65534  # what a stranger of the machine may do: read what everybody may
_WAIT_S = 20.0

_CONFIG = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log info;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    types { video/mp2t ts; application/json json; application/vnd.apple.mpegurl m3u8; }
    default_type application/octet-stream;
{http}
    server {
        listen 127.0.0.1:{port};
{server}
    }
}
"""


# What an operator writes, and a location as simple as any.
INCLUDE = """
set $tombsync_prefix {prefix};
set $tombsync_tree {root};
include {snippets}/tombsync.conf;
"""
ALIAS = "location /segments/ { alias {root}/; }"


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask_on(
    connection: socket.socket, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> Answer:
    """One request on an open connection, which stays open. http.client would not send a path that is none."""
    lines = [f"{method} {path} HTTP/1.1", "Host: archive.example"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
    answer = http.client.HTTPResponse(connection, method=method)
    try:
        answer.begin()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        answer.close()


class Nginx:
    """One nginx for the time of a `with` block, run by nobody where the tests are run by root.

    `server`: what stands in its server block, behind `include`; `http`: what stands before that block. `{root}`,
    `{directory}`, `{prefix}`, `{port}` and `{snippets}` in them are filled in. `root` is the segment tree, with the
    agent's directory in it; everybody may read it. Owner: the test's thread.
    """

    def __init__(
        self, server: str = ALIAS, *, prefix: str = "/segments", http: str = "", include: str = INCLUDE
    ) -> None:
        self._server = include + server
        self._http = http
        self.prefix = prefix
        self.directory = Path(tempfile.mkdtemp(prefix="tombsync-nginx-"))
        self.root = self.directory / "segments"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        (self.root / ".tombsync").mkdir(parents=True)
        self.directory.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(self.directory, NOBODY, NOBODY)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        for _ in range(5):  # another may take the port between its being found and its being taken
            self.port = free_port()
            self._write()
            with (self.directory / "out.log").open("wb") as out:
                self._process = subprocess.Popen(self._command(), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
            if wait_for(self._state, "nginx to answer or to end", _WAIT_S) == "answers":
                return
            if b"Address already in use" not in self._log():
                break
        raise AssertionError(f"nginx did not start: {self._log().decode(errors='replace')}")

    def refusal(self) -> str:
        """What `nginx -t` says against the configuration; "" where it says nothing."""
        self._write()
        done = subprocess.run([*self._command(), "-t"], capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stderr

    def _write(self) -> None:
        text = _CONFIG.replace("{server}", self._server).replace("{http}", self._http)
        for name, value in {
            "root": self.root, "directory": self.directory, "prefix": self.prefix, "port": self.port,
            "snippets": SNIPPETS,
        }.items():  # fmt: skip
            text = text.replace(f"{{{name}}}", str(value))
        (self.directory / "nginx.conf").write_text(text)

    def _command(self) -> list[str]:
        command = [need("nginx"), "-p", f"{self.directory}/", "-c", "nginx.conf", "-e", f"{self.directory}/error.log"]
        if os.geteuid() != 0:
            return command
        return [need("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]

    def _state(self) -> str:
        assert self._process is not None
        if self._process.poll() is not None:
            return "ended"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=_WAIT_S).close()
        except ConnectionRefusedError:
            return ""
        return "answers"

    def _log(self) -> bytes:
        return b"".join(
            path.read_bytes() for name in ("out.log", "error.log") if (path := self.directory / name).exists()
        )

    @property
    def errors(self) -> list[str]:
        """What it logged from `warn` on."""
        lines = self._log().decode(errors="replace").splitlines()
        return [line for line in lines if any(f"[{level}]" in line for level in ("warn", "error", "crit", "alert"))]

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        """One request on a connection of its own; each character of `path` goes out as the byte that it is."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=_WAIT_S) as connection:
            return ask_on(connection, path, method, headers)

    def status(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> int:
        """The status of one request."""
        return self.ask(path, method, headers).status

    def close(self) -> None:
        """End it, and leave nothing of it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(_WAIT_S)
        shutil.rmtree(self.directory)
