"""GET /files/C/Q/HOUR of 10,000 names in a million segments: from the index and the directory, alone and beside others.

python -m benchmarks.listing [--asks 500]
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import load, trees
from benchmarks.common import Report, await_fast_creates, await_true, parser, percentile, spread, work_directory
from benchmarks.hide import new_agent, settle, started
from benchmarks.scrape import scrapes
from tests.support.agent import AgentProcess
from tombsync.client import Client
from tombsync.names import Hour, hour_text

NAMES = 10_000
_LARGE = Hour("desertbus", "source", trees.FIRST_HOUR + 70_000)
_PAUSE_S = 0.005
_SLOW_READERS = 50
_MOST_S = 0.020


def large_hour(root: Path, number: int) -> Path:
    """An hour of 10,000 names, made once."""
    hour = _LARGE._replace(number=_LARGE.number + number)
    directory = root / hour.path
    directory.mkdir(parents=True, exist_ok=True)
    standing = set(os.listdir(directory))
    for index in range(NAMES):
        name = f"{trees.stem(hour.number, index)}.ts"
        if name not in standing:
            (directory / name).touch()
    return directory


class Asker:
    """One connection to the agent, kept open, and no more of HTTP than the question needs."""

    def __init__(self, agent: AgentProcess) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(agent.socket))

    def ask(self, path: str, header: str = "") -> tuple[bytes, int]:
        """The head of the answer and how long its body was."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._socket.recv(1 << 20)
        head, _, body = data.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.splitlines() if line.lower().startswith(b"content-length:")), 0)
        left = length - len(body)
        while left > 0:
            left -= len(self._socket.recv(1 << 20))
        return head, length

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def answers(
    agent: AgentProcess, path: str, count: int, *, of: bytes = b"", header: str = "", pause_s: float = _PAUSE_S
) -> list[float]:
    """Seconds of each answer, one after another. `of`: what each head must hold."""
    asker = Asker(agent)
    taken = []
    for _ in range(count):
        if header:  # the server ends a connection with an answer that has no body
            asker.close()
            asker = Asker(agent)
        begun = time.monotonic()
        head, _length = asker.ask(path, header)
        taken.append(time.monotonic() - begun)
        if of not in head:
            raise RuntimeError(f"not the answer that is measured: {head.decode()}")
        time.sleep(pause_s)
    asker.close()
    return taken


@contextmanager
def others(agent: AgentProcess, path: str, count: int) -> Iterator[None]:
    """So many clients that ask for the same again and again."""
    ended = threading.Event()

    def ask() -> None:
        asker = Asker(agent)
        while not ended.is_set():
            asker.ask(path)
            time.sleep(_PAUSE_S)
        asker.close()

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@contextmanager
def slow_readers(agent: AgentProcess, path: str) -> Iterator[None]:
    """Clients that have asked and read a byte every now and then."""
    ended = threading.Event()
    with ExitStack() as stack:
        readers = []
        for _ in range(_SLOW_READERS):
            reader = stack.enter_context(socket.socket(socket.AF_UNIX))
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(str(agent.socket))
            reader.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            readers.append(reader)

        def read() -> None:
            while not ended.wait(0.1):
                for reader in readers:
                    reader.recv(1)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--hours", type=int, default=556)
    options_parser.add_argument("--per-hour", type=int, default=1800)
    options_parser.add_argument("--asks", type=int, default=500)
    options = options_parser.parse_args()
    report = Report("listing", options.json)

    def add(figure: str, taken: list[float], most_s: float = _MOST_S) -> None:
        p99 = percentile(taken, 0.99)
        report.add(figure, spread(taken), must=f"p99 <= {most_s * 1e3:.0f} ms", ok=p99 <= most_s)

    with work_directory(options.work) as base:
        root = trees.kept(base, options.hours, options.per_hour)
        quiet, disturbed = large_hour(root, 0), large_hour(root, 1)
        await_fast_creates(base)
        agent = new_agent(base, root, "listing")
        with started(agent):
            settle(agent)
            path, other = (f"/files/{directory.relative_to(root)}" for directory in (quiet, disturbed))
            asker = Asker(agent)
            await_true(lambda: b"Read: index" in asker.ask(path)[0], "the hour to settle", within_s=60, pause_s=0.2)
            head, length = asker.ask(path)
            report.note(f"an answer has {length} bytes")
            etag = next(line for line in head.decode().splitlines() if line.lower().startswith("etag:"))
            asker.close()
            add("index", answers(agent, path, options.asks, of=b"Read: index"))
            unchanged = f"If-None-Match: {etag.partition(': ')[2]}\r\n"
            add("index, If-None-Match", answers(agent, path, options.asks, of=b" 304 ", header=unchanged))
            (disturbed / f"{time.time_ns()}.ts").touch()
            add("directory", answers(agent, other, options.asks, of=b"Read: directory"))
            with slow_readers(agent, path):
                add(f"index, beside {_SLOW_READERS} slow readers", answers(agent, path, options.asks))
            add("index, beside full rescans + 2,000 segments/s", beside_rescans(agent, root, path, options.asks))
            with others(agent, path, 4):
                add("/metrics, beside 4 who ask", scrapes(agent, options.asks), 0.050)
            span = f"/api/v1/segments?channel=desertbus&quality=source&start={hour_text(trees.FIRST_HOUR)}"
            span += f"&end={hour_text(trees.FIRST_HOUR + 24)}"
            report.add("1,000 segments of a day", spread(pages(agent, span, options.asks // 5)))
            report.add("1,000 best segments of a day", spread(pages(agent, f"{span}&best=true", options.asks // 5)))
            with Client(str(root), str(agent.state_dir)) as client:
                report.add("tombsync.client, from another process", spread(by_client(client, options.asks)))
    report.close()


def beside_rescans(agent: AgentProcess, root: Path, path: str, count: int) -> list[float]:
    """A full rescan is always running."""
    taken: list[float] = []
    with load.segments(root, 2000):
        while len(taken) < count:
            agent.signal(signal.SIGUSR2)
            taken += answers(agent, path, min(20, count - len(taken)))
    return taken


def pages(agent: AgentProcess, path: str, count: int) -> list[float]:
    """Seconds of each answer that is a stream: a connection of its own, read to the end."""
    return [timed(lambda: agent.get(path)) for _ in range(count)]


def by_client(client: Client, count: int) -> list[float]:
    """Seconds of each question of a Python program."""
    return [timed(lambda: client.names("desertbus", "source", _LARGE.text)) for _ in range(count)]


def timed(question: Callable[[], object]) -> float:
    """Seconds that it takes, and a pause behind it."""
    begun = time.monotonic()
    question()
    taken = time.monotonic() - begun
    time.sleep(_PAUSE_S)
    return taken


if __name__ == "__main__":
    main()
