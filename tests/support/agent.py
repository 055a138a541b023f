"""A real agent as a process of its own, and a small tree of segments for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync.index import MarkerRow, Reader, index_path
from tombsync.names import Hour, Marked, strict_path

HASH = "7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM"


def segment_stem(second: int = 0, *, kind: str = "full") -> str:
    """A real-looking stem at this second of its hour."""
    return f"{second // 60:02d}:{second % 60:02d}.608000-2.0-{kind}-{HASH}"


def make_hour(root: Path, hour: str = "desertbus/source/2019-11-13T02", segments: int = 3) -> Path:
    """An hour directory with some segments of a few bytes."""
    directory = root / hour
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(segments):
        (directory / f"{segment_stem(2 * number)}.ts").write_bytes(b"segment")
    return directory


def peer_table(name: str, server: Sshd, path: Path | str | None = None, **more: object) -> str:
    """A `[[peer]]` table for a test server."""
    values: dict[str, object] = {
        "name": name,
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "key": str(server.key_path),
        "known_hosts": str(server.known_hosts_path),
        "path": str(path if path is not None else server.root),
        **more,
    }
    return "[[peer]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def perhaps_told_before(record: Mapping[str, object]) -> bool:
    """Whether a record says that it may be the second one, as an agent was killed that may have told it."""
    return "TOMBSYNC_PERHAPS_TOLD_BEFORE" in record


class AgentProcess:
    """`tombsync run` on a directory. Everything lies below `base`; the journal is what it writes to stderr."""

    def __init__(
        self,
        base: Path,
        *,
        node: str = "node-a",
        root: Path | None = None,
        peers: Sequence[str] = (),
        settings: str = "",
        arguments: Sequence[str] = (),
        prefix: Sequence[str] = (),
        most_per_minute: int = 1_000_000_000,
        program: Sequence[str] = (sys.executable, "-m", "tombsync"),
    ) -> None:
        """`peers`: tables as `peer_table` makes them; `settings`: more TOML, above the tables; `prefix`: a command to
        run the agent under (unshare, strace, faketime); `most_per_minute`: marks that are not held; `program`: what
        stands for `tombsync`."""
        self.base = base
        self.node = node
        self.root = root or base / "segments"
        self.state_dir = base / "state"
        self.config = base / "tombsync.toml"
        self.log = base / "journal.jsonl"
        self.root.mkdir(parents=True, exist_ok=True)
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.socket.parent.mkdir(exist_ok=True)
        self.arguments = list(arguments)
        self.prefix = list(prefix)
        self.most_per_minute = most_per_minute
        self.program = list(program)
        self.process: subprocess.Popen[bytes] | None = None
        self.write_settings(peers, settings)

    def write_settings(self, peers: Sequence[str], settings: str = "") -> None:
        """Write the settings file anew; counts from the next start."""
        text = (
            f'node = "{self.node}"\nroot = "{self.root}"\nstate_dir = "{self.state_dir}"\n'
            f'journal = "stderr"\n{settings}\n'
            f'[http]\nlisten = "unix:{self.socket}"\n'
            f"[breaker]\nmost_per_minute = {self.most_per_minute}\n"
        )
        self.config.write_text(text + "".join(peers))

    @property
    def socket(self) -> Path:
        """Where its HTTP side listens."""
        return self.base / "run" / "http.sock"

    def start(self, *, ready: bool = True, within_s: float = 20.0) -> AgentProcess:
        """Start it, and wait until the first rescan is done."""
        command = [*self.prefix, *self.program, "run", "--config", str(self.config), *self.arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, stdin=subprocess.DEVNULL)
        if ready:
            wait_for(self.is_ready, "the agent to be ready", within_s)
        return self

    def is_ready(self) -> bool:
        """Whether /readyz says so; fails the test where the process has ended."""
        assert self.process is not None
        code = self.process.poll()
        assert code is None, f"the agent ended with {code}:\n{self.log.read_text(errors='replace')[-3000:]}"
        return self.get("/readyz")[0] == 200

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM, and its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 20.0) -> int:
        """Wait until it ends by itself: its exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    @property
    def pid(self) -> int:
        """The running process."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; after SIGSTOP it has stopped."""
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            wait_for(self._has_stopped, "it to stop")

    def _has_stopped(self) -> bool:
        """All its threads: each stops when it next comes out of the kernel."""
        tasks = Path(f"/proc/{self.pid}/task")
        try:
            return all(
                (tasks / task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in os.listdir(tasks)
            )
        except FileNotFoundError:  # one ended meanwhile
            return False

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process is not None and self.process.poll() is None

    def __enter__(self) -> AgentProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @contextlib.contextmanager
    def ending(self) -> Iterator[AgentProcess]:
        """A `with` block that starts nothing, and at whose end no process is left."""
        try:
            yield self
        finally:
            self.__exit__(None, None, None)

    # -- looking at it ------------------------------------------------------------------------------------------------

    def get(self, path: str) -> tuple[int, str]:
        """GET from its HTTP side: status and body; (0, "") where nothing answers."""
        status, body = self.fetch(path)
        return status, body.decode()

    def fetch(self, path: str) -> tuple[int, bytes]:
        """The same of what is no text."""
        connection = _UnixConnection(str(self.socket))
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics, `tombsync_` in front; 0 where a labelled one is not there yet.

        Fails the test where nothing answers, as that is no zero: see `metric_if_up`.
        """
        value = self.metric_if_up(name, **labels)
        assert value is not None, "nothing answers at /metrics"
        return value

    def metric_if_up(self, name: str, **labels: str) -> float | None:
        """The same for waiting while it starts, or is started again: None where nothing answers."""
        status, text = self.get("/metrics")
        return _sample(text, f"tombsync_{name}", labels) if status == 200 else None

    def records(self, event: str | None = None) -> list[dict[str, Any]]:
        """The audit records so far, of one event or of all."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # still being written
                if event in (None, record.get("TOMBSYNC_EVENT")):
                    found.append(record)
        return found

    def descriptors(self) -> list[str]:
        """What its open descriptors are, as /proc tells."""
        found = []
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(os.readlink(f"/proc/{self.pid}/fd/{name}"))
        return found

    def watched(self) -> set[tuple[int, int]]:
        """The directories that the kernel watches for it, as pairs of watch descriptor and inode."""
        found = set()
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"/proc/{self.pid}/fd/{name}") == "anon_inode:inotify":
                    for line in Path(f"/proc/{self.pid}/fdinfo/{name}").read_text().splitlines():
                        if line.startswith("inotify "):
                            fields = dict(field.partition(":")[::2] for field in line.split()[1:])
                            found.add((int(fields["wd"], 16), int(fields["ino"], 16)))
        return found

    def reader(self) -> Reader:
        """A reader of its index; close it."""
        return Reader(index_path(str(self.state_dir)))

    def marker(self, path: str) -> MarkerRow | None:
        """Its row of a stem, `CHANNEL/QUALITY/HOUR/STEM`."""
        reader = self.reader()
        try:
            return reader.marker(strict_path(path))
        finally:
            reader.close()

    def hidden(self, path: str) -> bool:
        """Whether its index hides a stem."""
        return self.marker(path) is not None

    def hides(self, marked: Marked) -> bool:
        """Whether its index hides a stem of whatever name."""
        reader = self.reader()
        try:
            return reader.marker(marked) is not None
        finally:
            reader.close()

    def listing(self, hour: Hour, *, tombstones: bool = False) -> list[str]:
        """What its index lists of an hour."""
        reader = self.reader()
        try:
            return reader.listing(hour, tombstones=tombstones)
        finally:
            reader.close()

    def states(self, path: str) -> dict[str, str]:
        """The state of each delivery of a stem, by peer."""
        reader = self.reader()
        try:
            row = reader.marker(strict_path(path))
            return {} if row is None else {d.peer: d.state.word for d in reader.deliveries(row.marker)}
        finally:
            reader.close()

    def run(self, *arguments: str, expect: int | None = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run another command on the same settings."""
        command = [sys.executable, "-m", "tombsync", *arguments, "--config", str(self.config)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, cwd=cwd, env=dict(os.environ)
        )
        if expect is not None:
            assert done.returncode == expect, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


def touch(directory: Path, stem: str) -> Marked:
    """Mark by hand, as an operator does."""
    (directory / f"{stem}.tombstone").touch()
    return strict_path("/".join([*directory.parts[-3:], stem]))


def _sample(text: str, wanted: str, labels: Mapping[str, str]) -> float:
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert any(wanted.startswith(family) for family in families), f"there is no metric {wanted}"
    for line in text.splitlines():
        key, _, value = line.rpartition(" ")
        series, _, rest = key.partition("{")
        if series == wanted and all(f'{label}="{value_wanted}"' in rest for label, value_wanted in labels.items()):
            return float(value)
    return 0.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
