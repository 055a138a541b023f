"""The stage of the demo: three nodes in a temporary directory, built, started and taken down again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import paramiko

from tombsync.cli.demo import material
from tombsync.cli.demo.keys import make_key, write_known_hosts
from tombsync.cli.demo.node import Node
from tombsync.cli.demo.patience import DidNotHold, Patience
from tombsync.cli.demo.servers import (
    EmbeddedServer,
    OpenSshServer,
    Place,
    Port,
    Server,
    ServerRefused,
    account,
    find_sshd,
)
from tombsync.errors import PeerError, PeerUnreachable
from tombsync.names import Marked
from tombsync.peers import Connector, Target

NAMES = ("node-a", "node-b", "node-c")  # a chain: a and c do not know each other, so what reaches c was passed on by b
_SERVER_LIMIT_S = 5.0
_SFTP_LOG = "embedded-sftp.log"


class Stage:
    """The nodes and what they share. `close` ends whatever was started, in any state; the directory stays.

    Owner: the main thread.
    """

    def __init__(self, directory: Path, patience: Patience) -> None:
        """Nothing is started yet. Raises OSError."""
        self.directory = directory
        self.nodes: list[Node] = []
        self.segments: list[Marked] = []  # those of the hour in which the marks are made, oldest first
        self.server = ""  # whose SFTP servers run
        self._patience = patience
        self._stack = ExitStack()
        self._key_path = directory / "id_ed25519"
        self._known_hosts = directory / "known_hosts"
        self._host_keys: list[paramiko.PKey] = []
        self._client_key = make_key(self._key_path)

    def build(self) -> None:
        """Make the trees, the servers' keys and the settings. Raises DidNotHold, OSError."""
        self._stack.callback(self._end_all)
        for name in NAMES:
            port = Port()
            self._stack.callback(port.close)
            node = Node(name, self.directory / name, port.number)
            self.nodes.append(node)
            self._host_keys.append(make_key(node.directory / "host_key"))
            self.segments = material.make_tree(node.root)
        for left, right in zip(self.nodes, self.nodes[1:], strict=False):
            left.neighbours += (right,)
            right.neighbours += (left,)
        pairs = zip((node.port for node in self.nodes), self._host_keys, strict=True)
        write_known_hosts(self._known_hosts, pairs)
        for node in self.nodes:
            node.write_settings(self._target(neighbour) for neighbour in node.neighbours)

    def start_servers(self, *, embedded: bool) -> str:
        """Start the SFTP servers and log in to each; returns why OpenSSH's cannot be used ("" where that is no matter).

        Raises DidNotHold where not even the embedded ones answer.
        """
        program = find_sshd()
        if embedded:
            refusal = ""
        elif not program:
            refusal = "OpenSSH is not installed"
        elif not account():
            refusal = "this user has no account that OpenSSH could serve"
        else:
            try:
                self._start_servers(program)
            except (ServerRefused, DidNotHold, OSError) as exc:
                self._stop_servers()
                refusal = f"OpenSSH does not serve this user: {exc}"
            else:
                self.server = "openssh"
                return ""
        self._keep_server_log()
        try:
            self._start_servers("")
        except ServerRefused as exc:
            raise DidNotHold(f"tombsync's own SFTP server does not serve: {exc}") from exc
        self.server = "embedded"
        return refusal

    def _start_servers(self, program: str) -> None:
        for node, host_key in zip(self.nodes, self._host_keys, strict=True):
            host_key_path = node.directory / "host_key"
            place = Place(node.directory, node.root, node.port, host_key, host_key_path, self._client_key)
            server = OpenSshServer(program, place) if program else EmbeddedServer(place)
            node.server = server
            server.start()
            self._await_login(node, server)

    def _await_login(self, node: Node, server: Server) -> None:
        connector = Connector(self._target(node))

        def answers() -> bool:
            server.require_alive()
            try:
                session = connector.connect()
            except PeerUnreachable:  # it does not listen yet
                return False
            except PeerError as exc:
                raise ServerRefused(server.explanation() or str(exc)) from exc
            session.close()
            if not session.root_there or not session.can_sync:
                raise ServerRefused("it serves no tree, or has no fsync")
            return True

        self._patience.until(answers, lambda: f"the SFTP server of {node.name} did not answer", limit_s=_SERVER_LIMIT_S)

    def _target(self, node: Node) -> Target:
        return node.target(account() or "demo", self._key_path, self._known_hosts)

    def _keep_server_log(self) -> None:
        """What the embedded servers log is for a file: between the lines of the demo it would only disturb."""
        log = logging.getLogger("tombsync.cli.demo")
        handler = logging.FileHandler(self.directory / _SFTP_LOG, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(threadName)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        propagate, log.propagate = log.propagate, False

        def undo() -> None:
            log.removeHandler(handler)
            handler.close()
            log.propagate = propagate

        self._stack.callback(undo)

    def require_alive(self) -> None:
        """Raise DidNotHold where something ended by itself."""
        for node in self.nodes:
            node.require_alive()

    def close(self) -> None:
        """End every process and thread that was started."""
        self._stack.close()

    def _end_all(self) -> None:
        Node.end_agents(self.nodes)  # first, so that the servers' sessions end by themselves
        self._stop_servers()

    def _stop_servers(self) -> None:
        for node in self.nodes:
            if node.server is not None:
                node.server.stop()
                node.server = None


def names_of(nodes: Sequence[Node]) -> str:
    """Names of nodes in a sentence."""
    names = [node.name for node in nodes]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
