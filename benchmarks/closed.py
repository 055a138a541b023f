"""How soon a URL is closed: from right before the `touch` to the 410 of nginx, with its neighbour asked beside it.

python -m benchmarks.closed [--touches 2000]
"""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import Report, need, parser, percentile, spread, touch
from tests.support.agent import AgentProcess
from tests.support.nginx import Nginx, ask_on

_HOUR = "desertbus/source/2019-11-13T02"
_SEGMENT_BYTES = 1_000_000  # 2 s of 4 Mbit/s
_DOWNLOADERS = 2
_LIMIT_S = 0.050
_HTTP = "keepalive_requests 1000000;"  # one connection for all of it
_AGENT = """
set $tombsync_agent http://unix:{directory}/agent/run/http.sock:;
set $tombsync_without_agent closed;
include {snippets}/tombsync-auth.conf;
"""
_ASKING = """
location /segments/ {
    alias {root}/;
    auth_request /tombsync-auth;
    auth_request_set $tombsync_answer $upstream_status;
    error_page 403 = @tombsync_closed;
    error_page 500 = @tombsync_unknown;
}
"""


def fill(root: Path, segments: int) -> list[str]:
    """An hour of segments, all hard links to one; the stems."""
    directory = root / _HOUR
    directory.mkdir(parents=True)
    stems = [f"{number:06d}" for number in range(segments)]
    first = directory / f"{stems[0]}.ts"
    first.write_bytes(bytes(_SEGMENT_BYTES))
    for stem in stems[1:]:
        (directory / f"{stem}.ts").hardlink_to(first)
    return stems


def url(stem: str) -> str:
    """Of a segment."""
    return f"/segments/{_HOUR}/{stem}.ts"


def touches(nginx: Nginx, stems: list[str]) -> tuple[list[float], int]:
    """Mark every second segment: seconds until each is 410, and how often its neighbour was not 200."""
    taken, wrong = [], 0
    directory = nginx.root / _HOUR
    with socket.create_connection(("127.0.0.1", nginx.port)) as connection:
        for stem, neighbour in zip(stems[::2], stems[1::2], strict=True):
            assert ask_on(connection, url(stem), "HEAD").status == 200
            begun = touch(directory / f"{stem}.tombstone")
            while ask_on(connection, url(stem)).status != 410:
                pass
            taken.append(time.monotonic() - begun)
            wrong += ask_on(connection, url(neighbour), "HEAD").status != 200
    return taken, wrong


def visible(nginx: Nginx, stem: str, count: int) -> list[float]:
    """Seconds of each HEAD of a visible segment."""
    taken = []
    with socket.create_connection(("127.0.0.1", nginx.port)) as connection:
        for _ in range(count):
            begun = time.monotonic()
            assert ask_on(connection, url(stem), "HEAD").status == 200
            taken.append(time.monotonic() - begun)
    return taken


def _download(port: int, path: str) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while True:
            ask_on(connection, path)


@contextmanager
def downloads(nginx: Nginx, stem: str) -> Iterator[None]:
    """Clients that fetch a segment again and again."""
    context = multiprocessing.get_context("spawn")
    clients = [context.Process(target=_download, args=(nginx.port, url(stem))) for _ in range(_DOWNLOADERS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        for client in clients:
            client.kill()
            client.join()


def add(report: Report, figure: str, taken: list[float], wrong: int) -> None:
    """A series of touches, with its limit."""
    report.add(figure, spread(taken), must="p99 <= 50 ms", ok=percentile(taken, 0.99) <= _LIMIT_S)
    report.add(f"{figure}: neighbours that were not 200", wrong, must="0", ok=wrong == 0)


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--touches", type=int, default=2000)
    options = options_parser.parse_args()
    need("nginx")
    report = Report("closed", options.json)
    with Nginx(include="", http=_HTTP) as bare:
        stems = fill(bare.root, 2)
        bare_s = percentile(visible(bare, stems[1], options.touches), 0.50)
        report.add("visible, without the snippet", f"{bare_s * 1e6:.0f} us")
    with Nginx(http=_HTTP) as nginx:
        stems = fill(nginx.root, 4 * options.touches)
        with_s = percentile(visible(nginx, stems[1], options.touches), 0.50)
        report.add("visible, with it", f"{with_s * 1e6:.0f} us")
        add(report, "touch -> 410", *touches(nginx, stems[: 2 * options.touches]))
        with downloads(nginx, stems[1]):
            beside = touches(nginx, stems[2 * options.touches :])
        add(report, f"touch -> 410 beside {_DOWNLOADERS} downloads", *beside)
    with Nginx(_AGENT + _ASKING, http=_HTTP) as nginx:
        stems = fill(nginx.root, 2 * options.touches)
        with AgentProcess(nginx.directory / "agent", root=nginx.root) as agent:
            agent.socket.chmod(0o666)
            report.add("visible, and the agent is asked", spread(visible(nginx, stems[1], options.touches)))
            add(report, "touch -> 410, and the agent is asked", *touches(nginx, stems))
    report.close()


if __name__ == "__main__":
    main()
