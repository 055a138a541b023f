"""One node of the demo: a tree, an agent as a process of its own, and an SFTP server that lets the neighbours in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tombsync import confine
from tombsync.cli.demo import processes
from tombsync.cli.demo.keys import HOST
from tombsync.cli.demo.patience import DidNotHold
from tombsync.cli.demo.servers import Server, ServerRefused
from tombsync.config import MAX_SOCKET_PATH_BYTES
from tombsync.index import MarkerRow, Reader, index_path
from tombsync.names import Hour, Marked
from tombsync.peers import Target
from tombsync.plan import State


class Node:
    """Everything of it lies below `directory`; neither the state nor the socket's directory holds the tree.

    Owner: the main thread. `reader` is there while the agent runs.
    """

    def __init__(self, name: str, directory: Path, port: int) -> None:
        """Make its directories. Raises DidNotHold, OSError."""
        self.name = name
        self.directory = directory
        self.root = directory / "segments"
        self.config = directory / "tombsync.toml"
        self.port = port
        self.neighbours: tuple[Node, ...] = ()
        self.server: Server | None = None
        self._state_dir = directory / "state"
        self._socket = directory / "run" / "http.sock"
        self._log = directory / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: Reader | None = None
        self._ls: subprocess.Popen[bytes] | None = None
        self._ls_output = directory / "ls.json"
        if len(os.fsencode(self._socket)) > MAX_SOCKET_PATH_BYTES:
            raise DidNotHold(f"{directory.parent} is too long a path for a socket; set TMPDIR to a shorter one")
        for path in (self.root, self._state_dir, self._socket.parent):
            path.mkdir(parents=True)

    # -- settings -----------------------------------------------------------------------------------------------------

    def target(self, user: str, key: Path, known_hosts: Path) -> Target:
        """This node as its neighbours reach it."""
        return Target(self.name, HOST, self.port, user, str(key), str(known_hosts), str(self.root))

    def write_settings(self, peers: Iterable[Target]) -> None:
        """Write the settings file."""
        tables: list[tuple[str, dict[str, str | int]]] = [
            ("", {"node": self.name, "root": str(self.root), "state_dir": str(self._state_dir), "journal": "stderr"}),
            ("[http]", {"listen": f"unix:{self._socket}"}),
        ]
        for peer in peers:
            where: dict[str, str | int] = {"name": peer.name, "host": peer.host, "port": peer.port, "user": peer.user}
            where |= {"key": peer.key, "known_hosts": peer.known_hosts, "delivery": "tree", "path": peer.path}
            tables.append(("[[peer]]", where))
        lines = []
        for title, values in tables:
            lines += [title] if title else []
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()] + [""]
        self.config.write_text("\n".join(lines))

    # -- the processes ------------------------------------------------------------------------------------------------

    def start_agent(self) -> None:
        """Start the agent; where the kernel can confine it, it does not run unconfined."""
        self._socket.unlink(missing_ok=True)  # of one that had to be killed: it would look as if this one listened
        self._process = processes.start([*self.command("run"), *confinement_options()], self._log)

    def command(self, name: str, *arguments: str) -> list[str]:
        """A command of tombsync on this node, as a person would type it."""
        return [sys.executable, "-m", "tombsync", name, *arguments, "--config", str(self.config)]

    def listens(self) -> bool:
        """Whether the agent has come so far that its index is there and its HTTP side answers."""
        return self._socket.exists()

    def ready(self) -> bool:
        """Whether the agent has read the whole tree and has a session with each neighbour."""
        if not self.listens():
            return False
        rescanned = any(self.reader.fact(f"rescan_{kind}_ns") for kind in ("interval", "full"))
        return rescanned and all(self.hears(neighbour) for neighbour in self.neighbours)

    def stop(self) -> None:
        """Take the server away at once, as an outage would, and end the agent."""
        if self.server is not None:
            self.server.stop()
        self.end_agents([self])

    @staticmethod
    def end_agents(nodes: Sequence[Node]) -> None:
        """End the agents of nodes, all at a time."""
        running = []
        for node in nodes:
            process, node._process = node._process, None
            reader, node._reader = node._reader, None
            if reader is not None:
                reader.close()
            running += [process] if process is not None else []
            running += [node._ls] if node._ls is not None else []
        processes.end(running)

    def require_alive(self) -> None:
        """Raise DidNotHold where the agent or the server has ended by itself."""
        code = self._process.poll() if self._process is not None else None
        if code is not None:
            raise DidNotHold(f"the agent of {self.name} ended with {code}{_last_words(self._log)}")
        if self.server is not None:
            try:
                self.server.require_alive()
            except ServerRefused as exc:
                raise DidNotHold(f"the SFTP server of {self.name}: {exc}") from exc

    # -- what its own index says --------------------------------------------------------------------------------------

    @property
    def reader(self) -> Reader:
        """Its index, once the agent `listens`."""
        if self._reader is None:
            self._reader = Reader(index_path(str(self._state_dir)))
        return self._reader

    def marker(self, marked: Marked) -> MarkerRow | None:
        """Its row of a tombstone: where there is one, the segment is hidden on this node."""
        return self.reader.marker(marked)

    def deliveries(self, marked: Marked) -> dict[str, State]:
        """What it knows of each neighbour's copy of a tombstone."""
        row = self.marker(marked)
        return {} if row is None else {delivery.peer: delivery.state for delivery in self.reader.deliveries(row.marker)}

    def hears(self, neighbour: Node) -> bool:
        """Whether its session with a neighbour stands."""
        return any(row.name == neighbour.name and row.up for row in self.reader.peers())

    # -- what a person sees -------------------------------------------------------------------------------------------

    def ask_listing(self, hour: Hour) -> None:
        """Start `tombsync ls` for an hour."""
        self._ls = processes.start(self.command("ls", hour.path, "--json"), self._log, output=self._ls_output)

    def listing_ended(self) -> bool:
        """Whether the `tombsync ls` that was started has ended."""
        return self._ls is None or self._ls.poll() is not None

    def listing(self) -> list[str]:
        """What it has printed. Raises DidNotHold where it failed."""
        if self._ls is None or self._ls.returncode != 0:
            raise DidNotHold(f"`tombsync ls` on {self.name} failed{_last_words(self._log)}")
        return [str(name) for name in json.loads(self._ls_output.read_bytes())]


def confinement_options() -> list[str]:
    """What an agent of the demo is told where this kernel has Landlock."""
    return ["--require-confinement"] if confine.abi_version() else []


def _last_words(log: Path) -> str:
    """The last line of a log that is not a record, as far as it is there."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("tombsync: ")]
    return f" ({lines[-1].removeprefix('tombsync: ')})" if lines else ""


def touch(root: Path, marked: Marked) -> None:
    """Mark a segment as an operator does by hand. Raises OSError."""
    path = os.path.join(root, marked.tombstone_path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
