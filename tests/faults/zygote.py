"""Many short lives of the agent: a process that has imported everything forks one for each, within milliseconds.

`python -m tests.faults.zygote DESCRIPTOR` is that process; it has one thread, so a fork of it is as good as a fresh
interpreter with the same modules. `Zygote` is its client, in the test's process.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.faults import calls
from tests.support.agent import AgentProcess
from tests.support.waiting import wait_for

_MESSAGE_BYTES = 128 * 1024  # what one datagram may hold with the stock limits of sockets
_IMPORTS = ("tombsync.cli.main", "tombsync.daemon", "tombsync.cli.demo.sftpd", "flask.json", "encodings.idna")


class Life:
    """One forked process, with the methods of a Popen that an AgentProcess uses. Its parent is the zygote."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote
        self._handle: int | None = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None where it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends. Raises TimeoutExpired."""
        code = self._look(None if timeout is None else timeout * 1000)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def _look(self, timeout_ms: float | None) -> int | None:
        if self._handle is not None:
            poller = select.poll()
            poller.register(self._handle, select.POLLIN)
            if poller.poll(timeout_ms):
                self.returncode = self._zygote.reap(self.pid)
                os.close(self._handle)
                self._handle = None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Zygote:
    """Starts lives; a context manager. Any thread may use it."""

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.zygote", str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()  # which ends it
        self._process.wait()

    def start(
        self,
        arguments: Sequence[str],
        output: Path,
        *,
        errors: Path | None = None,
        fault: calls.Fault | None = None,
        constants: Mapping[str, object] | None = None,
    ) -> Life:
        """Run `tombsync ARGUMENTS`. What it writes is appended to `output`, or on stderr to `errors`.

        `constants` are set in its modules before it begins, by their full names.
        """
        request = {
            "arguments": list(arguments),
            "output": str(output),
            "errors": str(errors or output),
            "calls": fault.numbers if fault else None,
            "constants": dict(constants or {}),
        }
        output.touch()  # whoever started it may look at once
        pid = listener = None
        with self._lock:
            self._socket.send(json.dumps(request).encode())
            while pid is None or (fault is not None and listener is None):
                data, descriptors, _, _ = socket.recv_fds(self._socket, _MESSAGE_BYTES, 1)
                if descriptors:
                    listener = descriptors[0]
                else:
                    pid = json.loads(data or b"null")["pid"]
        assert pid is not None
        life = Life(self, pid)
        if fault is not None and listener is not None:
            fault.watch(listener, pid)
        return life

    def reap(self, pid: int) -> int:
        """The exit code of a life that has ended."""
        with self._lock:
            self._socket.send(json.dumps({"reap": pid}).encode())
            code: int = json.loads(self._socket.recv(_MESSAGE_BYTES))["code"]
        return code


class ForkedAgent(AgentProcess):
    """An AgentProcess whose processes come from a zygote; `fault` counts for its next start."""

    def __init__(
        self, zygote: Zygote, base: Path, *, constants: Mapping[str, object] | None = None, **more: Any
    ) -> None:
        super().__init__(base, **more)
        self.zygote = zygote
        self.constants = dict(constants or {})
        self.fault: calls.Fault | None = None

    def start(self, *, ready: bool = True, within_s: float = 20.0) -> ForkedAgent:
        """Start it, and wait until the first rescan is done."""
        fault, self.fault = self.fault, None
        arguments = ["run", "--config", str(self.config), *self.arguments]
        self.process = self.zygote.start(  # type: ignore[assignment] # it has what is used of a Popen
            arguments, self.log, fault=fault, constants=self.constants
        )
        if ready:
            wait_for(self.is_ready, "the agent to be ready", within_s)
        return self

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def command(self, *arguments: str, fault: calls.Fault | None = None) -> tuple[int, str, str]:
        """Run another command on the same settings: its exit code and what it said on stdout and stderr."""
        output, told = self.base / "command.out", self.base / "command.err"
        life = self.zygote.start([*arguments, "--config", str(self.config)], output, errors=told, fault=fault)
        code = life.wait(60)
        said, warned = output.read_text(errors="replace"), told.read_text(errors="replace")
        output.unlink()
        told.unlink()
        return code, said, warned


# -- the zygote itself -------------------------------------------------------------------------------------------------


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; returns the request in the forked process, None when the client is gone."""
    while data := control.recv(_MESSAGE_BYTES):
        request: dict[str, Any] = json.loads(data)
        if pid := request.get("reap"):
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}
        elif pid := os.fork():
            answer = {"pid": pid}
        else:
            return request
        control.send(json.dumps(answer).encode())
    return None


def _prepare(request: dict[str, Any], control: socket.socket) -> None:
    for name, value in request["constants"].items():
        module, _, constant = name.rpartition(".")
        assert hasattr(sys.modules[module], constant)
        setattr(sys.modules[module], constant, value)
    random.seed()
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    told = os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, descriptor in enumerate((null, output, told)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request["calls"] is not None:
        listener = calls.install(request["calls"])
        socket.send_fds(control, [b"listener"], [listener])
        os.close(listener)
    control.close()
    sys.argv = ["tombsync", *request["arguments"]]


def main() -> None:
    """The zygote, and in each fork of it the command line."""
    for name in _IMPORTS:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1
    gc.collect()
    gc.freeze()  # or each fork would copy all of it when it ends
    control = socket.socket(fileno=int(sys.argv[1]))
    request = _serve(control)
    if request is not None:
        _prepare(request, control)
        sys.modules["tombsync.cli.main"].main()


if __name__ == "__main__":
    main()
