"""The web server and its application, over real sockets."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import math
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flask import Blueprint, Flask, abort
from prometheus_client import CollectorRegistry, Counter, make_wsgi_app

from tests.support.waiting import wait_for
from tombsync import precedence
from tombsync.errors import ListenRefused
from tombsync.web.app import build_app
from tombsync.web.server import WORKERS, WebServer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

WAIT_S = 20  # a test that gets this far has failed


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=WAIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(self._path)


def connect(server: WebServer) -> http.client.HTTPConnection:
    host, port = server.address
    return http.client.HTTPConnection(host, port, timeout=WAIT_S) if port else UnixConnection(host)


def ask(server: WebServer, path: str, method: str = "GET") -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request on a connection of its own."""
    with closing(connect(server)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def open_raw(server: WebServer, data: bytes) -> socket.socket:
    """A connection on which `data` was sent and nothing read yet."""
    client = socket.create_connection(server.address, timeout=WAIT_S)
    client.sendall(data)
    return client


def read_all(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    data = b""
    try:
        while part := client.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def plain(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"plain"]


class Gate:
    """An application whose answers wait until the gate is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.entered.release()
        assert self.opened.wait(WAIT_S)
        return plain(environ, start_response)


Serve = Callable[..., WebServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers; at the end every one must stop, and leave no thread and no descriptor."""
    gc.collect()  # what earlier tests left behind would go meanwhile
    threads, descriptors = set(threading.enumerate()), os.listdir("/proc/self/fd")
    started = []

    def start(app: WSGIApplication, listen: str = "127.0.0.1:0") -> WebServer:
        server = WebServer(app, listen)
        started.append(server)
        server.start()
        return server

    yield start
    assert [server.close() for server in started] == [True] * len(started)
    assert set(threading.enumerate()) == threads
    assert os.listdir("/proc/self/fd") == descriptors


# -- the server -------------------------------------------------------------------------------------------------------


def test_it_serves_at_once(serve: Serve) -> None:
    server = serve(plain)
    host, port = server.address
    assert host == "127.0.0.1"
    assert port > 0
    status, headers, body = ask(server, "/")
    assert (status, body) == (200, b"plain")
    assert "Server" not in headers
    assert [server.alive, server.close(), server.alive] == [True, True, False]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port))


def test_a_connection_is_kept_for_the_next_request(serve: Serve) -> None:
    server = serve(plain)
    with closing(connect(server)) as connection:
        for _ in range(3):
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert answer.read() == b"plain"
            assert not answer.will_close


def test_an_exception_tells_nothing(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def fail(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise ValueError("secret")

    status, headers, body = ask(serve(fail), "/")
    assert status == 500
    assert b"secret" not in body
    assert b"Traceback" not in body
    assert b"waitress" not in body
    assert "Server" not in headers
    assert "ValueError: secret" in caplog.text


def test_requests_are_served_at_the_same_time(serve: Serve) -> None:
    together = threading.Barrier(4)  # passes only when four workers are inside

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        together.wait(WAIT_S)
        return plain(environ, start_response)

    server = serve(app)
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda _: ask(server, "/"), range(16)))
    assert [(status, body) for status, _, body in answers] == [(200, b"plain")] * 16


def test_a_client_that_sends_half_a_request_holds_nobody(serve: Serve) -> None:
    server = serve(plain)
    slow = [open_raw(server, b"GET / HTTP/1.1\r\nHost: x\r\nX-Half: ") for _ in range(20)]
    assert [ask(server, "/")[0] for _ in range(8)] == [200] * 8
    slow[0].sendall(b"done\r\nConnection: close\r\n\r\n")
    assert read_all(slow[0]).endswith(b"plain")
    assert server.close()
    assert [read_all(client) for client in slow[1:]] == [b""] * 19
    for client in slow:
        client.close()


def test_a_client_that_is_gone_before_its_answer_holds_nobody(serve: Serve) -> None:
    gate = Gate()
    server = serve(gate)
    clients = [open_raw(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(4)]
    for _ in clients:
        assert gate.entered.acquire(timeout=WAIT_S)
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # reset instead of a close
        client.close()
    gate.opened.set()
    assert ask(server, "/")[0] == 200


def test_close_lets_an_open_request_finish(serve: Serve) -> None:
    gate = Gate()
    server = serve(gate)
    host, port = server.address
    client = open_raw(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert gate.entered.acquire(timeout=WAIT_S)
    with ThreadPoolExecutor(1) as owner:
        closed = owner.submit(server.close, WAIT_S)
        while True:  # until it accepts no more
            try:
                socket.create_connection((host, port), timeout=WAIT_S).close()
            except OSError:
                break
        assert not closed.done()
        gate.opened.set()
        assert closed.result(WAIT_S)
    with client:
        assert read_all(client).endswith(b"plain")


def test_close_does_not_wait_for_a_route_that_is_stuck(serve: Serve) -> None:
    gate = Gate()
    server = serve(gate)
    with open_raw(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        assert gate.entered.acquire(timeout=WAIT_S)
        assert not server.close(0.1)
        assert read_all(client) == b""
    gate.opened.set()
    assert server.close(WAIT_S)


def test_who_asks_on_without_reading_holds_no_worker(serve: Serve) -> None:
    """And is cut, as what it does not read would be kept for ever."""
    large = b"x" * 500_000

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [large if environ["PATH_INFO"] == "/large" else b"ok"]

    server = serve(app)
    greedy = [open_raw(server, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 100) for _ in range(WORKERS + 1)]
    for one in greedy:
        one.settimeout(20)
        assert one.recv(1) == b"H"  # it is being answered
    for _ in range(20):
        assert ask(server, "/small")[0] == 200

    for one in greedy:
        got = 1
        with contextlib.suppress(ConnectionResetError), one:
            while data := one.recv(1 << 20):
                got += len(data)
        assert got < 100 * len(large)  # it ended before all was answered


def test_close_wakes_a_worker_that_waits_for_a_slow_reader(serve: Serve) -> None:
    sent = threading.Event()
    ended = threading.Event()

    def flood(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            for number in range(1000):
                if number == 16:  # 16 MiB are on their way: the next parts wait for the client
                    sent.set()
                yield bytes(1 << 20)
        finally:
            ended.set()

    server = serve(flood)
    with open_raw(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
        assert sent.wait(WAIT_S)
        assert not ended.is_set()
        assert server.close(1)
        assert ended.is_set()


def test_close_twice_and_close_without_start() -> None:
    server = WebServer(plain, "127.0.0.1:0")
    assert server.close()
    assert not server.alive
    with pytest.raises(RuntimeError):
        _ = server.address
    server.start()
    with pytest.raises(RuntimeError):
        server.start()
    assert server.close()
    assert server.close()


def test_a_port_in_use_is_refused(serve: Serve) -> None:
    host, port = serve(plain).address
    with pytest.raises(ListenRefused) as refusal:
        serve(plain, f"{host}:{port}")
    assert str(refusal.value) == f"cannot listen on {host}:{port}: Address already in use"


def test_a_port_can_be_taken_again_after_close(serve: Serve) -> None:
    first = serve(plain)
    host, port = first.address
    assert ask(first, "/")[0] == 200
    assert first.close()
    assert ask(serve(plain, f"{host}:{port}"), "/")[0] == 200


@pytest.mark.parametrize(
    "listen",
    ["", "9786", ":9786", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:9786", "unix:", "unix:x"],
)
def test_an_address_that_is_none_is_refused(listen: str, serve: Serve) -> None:
    with pytest.raises(ListenRefused, match="not HOST:PORT"):
        serve(plain, listen)


@pytest.mark.parametrize("listen", ["192.0.2.1:9786", "[2001:db8::1]:9786", "no host:9786", "a..b:9786"])
def test_an_address_that_is_not_ours_is_refused(listen: str, serve: Serve) -> None:
    with pytest.raises(ListenRefused) as refusal:
        serve(plain, listen)
    assert refusal.value.listen == listen
    assert refusal.value.reason


def test_ipv6(serve: Serve) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = serve(plain, "[::1]:0")
    assert server.address[0] == "::1"
    assert ask(server, "/")[0] == 200


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_unix_socket(umask: int, serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    before = os.umask(umask)
    try:
        server = serve(plain, f"unix:{path}")
        assert os.umask(umask) == umask  # left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert server.address == (str(path), 0)
    assert ask(server, "/")[2] == b"plain"
    assert server.close()
    assert not path.exists()


def test_a_unix_socket_that_a_killed_process_left_is_replaced(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert ask(serve(plain, f"unix:{path}"), "/")[0] == 200


def test_a_unix_socket_in_use_is_refused(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    first = serve(plain, f"unix:{path}")
    with pytest.raises(ListenRefused, match="another process listens on it"):
        serve(plain, f"unix:{path}")
    assert ask(first, "/")[0] == 200


def test_close_leaves_a_unix_socket_that_another_made_in_its_place(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    server = serve(plain, f"unix:{path}")
    path.rename(tmp_path / "old.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        assert server.close()
        assert path.is_socket()


def test_what_is_no_socket_is_left_alone(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    with pytest.raises(ListenRefused, match="a file that is no socket is there"):
        serve(plain, f"unix:{path}")
    assert path.read_text() == "kept"


@pytest.mark.parametrize("name", ["missing/http.sock", "x" * 120])
def test_a_unix_path_that_cannot_be(name: str, serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(ListenRefused):
        serve(plain, f"unix:{tmp_path}/{name}")


# -- the application --------------------------------------------------------------------------------------------------


class Agent:
    """What the application asks the agent, to be set by a test."""

    def __init__(self) -> None:
        self.ages = {"intake": 0.0123, "watch": 3.0}
        self.is_ready = True
        self.detail = "first rescan done"
        self.registry = CollectorRegistry()
        Counter("tombsync_test", "A counter.", registry=self.registry).inc(3)

    def app(self, **replaced: Any) -> Flask:
        settings: dict[str, Any] = {
            "metrics_app": make_wsgi_app(self.registry, disable_compression=True),
            "health": lambda: self.ages,
            "ready": lambda: self.is_ready,
            "ready_detail": lambda: self.detail,
            "stale_after_s": 30.0,
        }
        return build_app(**{**settings, **replaced})


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_metrics(agent: Agent, serve: Serve) -> None:
    server = serve(agent.app())
    status, headers, body = ask(server, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert headers["Content-Length"] == str(len(body))
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert b"tombsync_test_total 3.0\n" in body
    assert ask(server, "/metrics?name[]=nothing")[2] == b""

    status, headers, nothing = ask(server, "/metrics", "HEAD")
    assert (status, nothing) == (200, b"")
    assert headers["Content-Length"] == str(len(body))


def test_concurrent_scrapes(agent: Agent, serve: Serve) -> None:
    server = serve(agent.app())
    bodies: list[bytes] = []

    def scrape(_: int) -> None:
        with closing(connect(server)) as connection:
            for _ in range(20):
                connection.request("GET", "/metrics")
                answer = connection.getresponse()
                assert answer.status == 200
                bodies.append(answer.read())

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(scrape, range(8)))
    assert len(bodies) == 160
    assert all(body.count(b"tombsync_test_total 3.0\n") == 1 for body in bodies)


def test_alive(agent: Agent, serve: Serve) -> None:
    status, headers, body = ask(serve(agent.app()), "/healthz")
    assert status == 200
    assert json.loads(body) == {"status": "ok", "workers": {"intake": 0.012, "watch": 3.0}}
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(("age_s", "shown"), [(30.5, 30.5), (math.inf, None), (math.nan, None)])
def test_a_worker_that_beats_no_more(age_s: float, shown: float | None, agent: Agent, serve: Serve) -> None:
    agent.ages["rescan"] = age_s
    agent.ages["push node-b"] = 31
    agent.ages["watch"] = 30.0  # just in time
    status, _, body = ask(serve(agent.app()), "/healthz")
    assert status == 503
    answer = json.loads(body)
    assert answer["status"] == "stalled"
    assert answer["stalled"] == ["push node-b", "rescan"]
    assert answer["workers"] == {"intake": 0.012, "watch": 30.0, "rescan": shown, "push node-b": 31}


def test_ready(agent: Agent, serve: Serve) -> None:
    server = serve(agent.app())
    status, headers, body = ask(server, "/readyz")
    assert (status, json.loads(body)) == (200, {"status": "ready", "detail": "first rescan done"})
    assert headers["Cache-Control"] == "no-store"
    agent.is_ready, agent.detail = False, "first rescan: 12 of 26000 hours"
    status, _, body = ask(server, "/readyz")
    assert (status, json.loads(body)) == (503, {"status": "not ready", "detail": "first rescan: 12 of 26000 hours"})


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/metrics/", "/metrics/x", "/static/x", "/a//b", "/%2e%2e/etc", "/%ff"]
)
def test_everything_else_is_not_found(path: str, agent: Agent, serve: Serve) -> None:
    status, headers, body = ask(serve(agent.app()), path)
    assert (status, json.loads(body)) == (404, {"status": 404, "error": "Not Found"})
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "FLY"])
def test_other_methods_are_refused(method: str, path: str, agent: Agent, serve: Serve) -> None:
    status, headers, body = ask(serve(agent.app()), path, method)
    assert (status, json.loads(body)) == (405, {"status": 405, "error": "Method Not Allowed"})
    assert sorted(headers["Allow"].split(", ")) == ["GET", "HEAD"]


@pytest.mark.parametrize("broken", ["health", "ready", "ready_detail", "metrics_app"])
def test_an_exception_in_a_route_is_a_plain_500(
    broken: str, agent: Agent, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise OSError("secret")

    path = {"health": "/healthz", "metrics_app": "/metrics"}.get(broken, "/readyz")
    status, headers, body = ask(serve(agent.app(**{broken: fail})), path)
    assert (status, json.loads(body)) == (500, {"status": 500, "error": "Internal Server Error"})
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "OSError: secret" in caplog.text


def test_a_blueprint_has_room(agent: Agent, serve: Serve) -> None:
    """What a later route says itself is kept: its headers, and its words where it refuses."""
    routes = Blueprint("later", __name__)

    @routes.get("/files/<name>")
    def files(name: str) -> tuple[list[str], int, dict[str, str]]:
        if name == "bad":
            abort(400, description="tombstones is true or false")
        return [name], 200, {"Cache-Control": "max-age=1"}

    server = serve(agent.app(blueprints=[routes]))
    status, headers, body = ask(server, "/files/one")
    assert (status, json.loads(body), headers["Cache-Control"]) == (200, ["one"], "max-age=1")
    status, _, body = ask(server, "/files/bad")
    assert status == 400
    assert json.loads(body) == {"status": 400, "error": "Bad Request", "detail": "tombstones is true or false"}


def test_a_request_has_precedence_until_it_is_answered_and_the_end_of_a_connection_has_none() -> None:
    during: list[bool] = []

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        during.append(bool(precedence._claims))
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    server = WebServer(app, "127.0.0.1:0")
    server.start()
    try:
        for _ in range(2):  # the end of the first connection was read before the second one was
            with closing(http.client.HTTPConnection(*server.address, timeout=WAIT_S)) as client:
                client.request("GET", "/")
                assert client.getresponse().read() == b"ok"
            wait_for(lambda: not precedence._claims, "the claim to be released")
        assert during == [True, True]
    finally:
        server.close()
