"""What reaches a service manager's socket, a real one."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tombsync.notify import Notifier


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """What came since the last time."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    yield manager
    manager.close()


@pytest.fixture
def notifier(address: str, manager: Manager) -> Iterator[Notifier]:
    notifier = Notifier(address, watchdog=True)
    yield notifier
    notifier.close()


def test_a_whole_life(notifier: Notifier, manager: Manager) -> None:
    notifier.status("first scan 43 %")
    notifier.ready()
    notifier.alive()
    notifier.stopping()
    assert manager.heard() == ["STATUS=first scan 43 %", "READY=1", "WATCHDOG=1", "STOPPING=1"]


def test_a_reload_carries_the_monotonic_clock(notifier: Notifier, manager: Manager) -> None:
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.ready()
    reloading, ready = manager.heard()
    word, _, stamp = reloading.partition("\n")
    assert word == "RELOADING=1"
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert ready == "READY=1"


def test_a_status_is_told_when_it_changes_and_is_one_line(notifier: Notifier, manager: Manager) -> None:
    notifier.status("a\nREADY=1")
    notifier.status("a\nREADY=1")
    notifier.status("ü" * 1000)
    assert manager.heard() == [r"STATUS=a\nREADY=1", "STATUS=" + "ü" * 300]


def test_no_beats_where_none_are_awaited(address: str, manager: Manager) -> None:
    notifier = Notifier(address)
    notifier.alive()
    notifier.close()
    assert manager.heard() == []


def test_an_abstract_name() -> None:
    name = f"tombsync-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    notifier = Notifier(f"@{name}")
    notifier.ready()
    assert manager.heard() == ["READY=1"]
    notifier.close()
    manager.close()


def test_a_change_that_nobody_took_is_told_later_and_in_order(address: str) -> None:
    notifier = Notifier(address, watchdog=True)
    notifier.ready()
    notifier.reloading()
    notifier.status("nobody hears it")
    manager = Manager(address)
    notifier.alive()
    notifier.status("nobody hears it")
    words = [message.partition("\n")[0] for message in manager.heard()]
    assert words == ["READY=1", "RELOADING=1", "WATCHDOG=1", "STATUS=nobody hears it"]
    notifier.close()
    manager.close()


def test_a_manager_that_is_behind_holds_nobody_up(notifier: Notifier, manager: Manager) -> None:
    with open("/proc/sys/net/unix/max_dgram_qlen", encoding="ascii") as file:
        room = int(file.read()) + 1
    for number in range(room + 2):
        notifier.status(f"status {number}")
    notifier.ready()
    assert len(manager.heard()) == room
    notifier.alive()
    assert manager.heard() == ["READY=1", "WATCHDOG=1"]


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, ["READY=1"]),
        ({"WATCHDOG_USEC": "3000000"}, ["READY=1", "WATCHDOG=1"]),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, ["READY=1", "WATCHDOG=1"]),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, ["READY=1"]),
    ],
)
def test_the_environment_says_what_is_awaited(
    variables: dict[str, str], told: list[str], address: str, manager: Manager
) -> None:
    environment = {"NOTIFY_SOCKET": address, "PATH": "/bin", **variables}
    notifier = Notifier.of_environment(environment)
    notifier.ready()
    notifier.alive()
    notifier.close()
    assert manager.heard() == told
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize("variables", [{}, {"NOTIFY_SOCKET": "vsock:2:1234"}, {"NOTIFY_SOCKET": ""}])
def test_without_a_manager_nothing_is_told(variables: dict[str, str]) -> None:
    notifier = Notifier.of_environment(dict(variables))
    notifier.ready()
    notifier.status("nobody hears it")
    notifier.alive()
    notifier.stopping()
    notifier.close()
