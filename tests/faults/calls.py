"""Faults in the system calls of a process: the n-th of those that it makes on some paths kills it, or fails.

strace can inject the same, but counts in each thread by itself, so that its n-th call is one of several and most are
never met. Here all threads of a process share one count: a seccomp filter hands each call of interest to the test's
process (seccomp_unotify(2)), which lets it through, answers it with an error, or kills the caller before it happens.

Process killed before its call n means killed right after n - 1: all points between two calls are met.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import struct
import threading
from collections.abc import Collection, Sequence
from typing import NamedTuple

import pytest

KILL = -1  # as a Fault's `error`

_MACHINES = ("x86_64", "aarch64")
# name: numbers on each machine (None: that one has no such call), the argument that is a descriptor or a directory's
# descriptor, the argument that is a path. Where a call has two paths, the one that appears or goes.
_CALLS: dict[str, tuple[tuple[int | None, ...], int | None, int | None]] = {
    "read": ((0, 63), 0, None),
    "pread64": ((17, 67), 0, None),
    "write": ((1, 64), 0, None),
    "writev": ((20, 66), 0, None),
    "pwrite64": ((18, 68), 0, None),
    "pwritev": ((296, 70), 0, None),
    "ftruncate": ((77, 46), 0, None),
    "fallocate": ((285, 47), 0, None),
    "fsync": ((74, 82), 0, None),
    "fdatasync": ((75, 83), 0, None),
    "getdents64": ((217, 61), 0, None),
    "open": ((2, None), None, 0),
    "openat": ((257, 56), 0, 1),
    "mkdir": ((83, None), None, 0),
    "mkdirat": ((258, 34), 0, 1),
    "link": ((86, None), None, 1),
    "linkat": ((265, 37), 2, 3),
    "symlinkat": ((266, 36), 1, 2),
    "rename": ((82, None), None, 1),
    "renameat": ((264, 38), 2, 3),
    "renameat2": ((316, 276), 2, 3),
    "unlink": ((87, None), None, 0),
    "unlinkat": ((263, 35), 0, 1),
    "rmdir": ((84, None), None, 0),
}
_FLAGS_ARGUMENT = {"open": 1, "openat": 2}

# What changes a file system: of the opens only those that may create.
CHANGES = (
    *("write", "writev", "pwrite64", "pwritev", "ftruncate", "fallocate", "fsync", "fdatasync", "mkdir", "mkdirat"),
    *("link", "linkat", "symlinkat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "creating open"),
)

# linux/seccomp.h, linux/filter.h; the numbers of these two calls differ between machines.
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_ALLOW, _USER_NOTIF = 0x7FFF0000, 0x7FC00000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_PR_SET_NO_NEW_PRIVS = 38
_AT_FDCWD = -100
_NOTIFICATION = struct.Struct("=QII iIQ 6Q")  # seccomp_notif: id, pid, flags; seccomp_data: nr, arch, ip, arguments
_RESPONSE = struct.Struct("=QqiI")


class Call(NamedTuple):
    """One system call: its number among those counted, from 1 on, its name and the path that it is about."""

    number: int
    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.number}: {self.name} {self.path}"


class Fault:
    """What is to happen to the calls of one process. Owned by the test; `seen` and `hits` are written by one thread.

    `names`: calls by name, "creating open" for opens that may create; `under`: only those whose path begins so. The
    call number `at` is answered with `error`, or ends the process where that is KILL; `every` says that so is each
    call that many calls later.
    """

    def __init__(
        self, names: Collection[str], *, under: Sequence[str], at: int = 0, error: int = KILL, every: int = 0
    ) -> None:
        self.names = frozenset(names)
        self.under = tuple(under)
        self.at = at
        self.error = error
        self.every = every
        self.seen: list[Call] = []
        self.hits: list[Call] = []
        self._thread: threading.Thread | None = None

    @property
    def hit(self) -> Call | None:
        """The first call that it met."""
        return self.hits[0] if self.hits else None

    @property
    def numbers(self) -> list[int]:
        """The numbers of the calls, for the filter."""
        names = {name for name in _CALLS if name in self.names}
        if "creating open" in self.names:
            names |= _FLAGS_ARGUMENT.keys()
        return sorted(n for name in names if (n := _number(name)) is not None)

    def watch(self, listener: int, pid: int) -> None:
        """Answer what a filter's listener tells, in a thread, until the process has ended. Closes the descriptor."""
        self._thread = threading.Thread(
            target=self._answer_all, args=(listener, pid), daemon=True, name=f"faults of {pid}"
        )
        self._thread.start()

    def join(self) -> None:
        """Wait until the process has ended and nothing will be written here any more."""
        if self._thread is not None:
            self._thread.join()

    def _answer_all(self, listener: int, pid: int) -> None:
        names = {number: name for name in _CALLS if (number := _number(name)) is not None}
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        try:
            while not poller.poll()[0][1] & select.POLLHUP:
                buffer = bytearray(_NOTIFICATION.size)
                try:
                    fcntl.ioctl(listener, _RECEIVE, buffer)
                except OSError as exc:
                    if exc.errno in (errno.ENOENT, errno.EINTR):  # it was killed meanwhile
                        continue
                    raise
                identifier, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
                error = self._decide(names[number], thread, arguments)
                if error == KILL:
                    os.kill(pid, signal.SIGKILL)
                    continue
                answer = _RESPONSE.pack(identifier, 0, -error, 0 if error else _CONTINUE)
                with contextlib.suppress(FileNotFoundError):
                    fcntl.ioctl(listener, _SEND, answer)
        finally:
            os.close(listener)

    def _decide(self, name: str, thread: int, arguments: Sequence[int]) -> int:
        if name in _FLAGS_ARGUMENT and name not in self.names and not arguments[_FLAGS_ARGUMENT[name]] & os.O_CREAT:
            return 0
        try:
            path = _path(name, thread, arguments)
        except OSError:  # killed meanwhile, or a descriptor that is none
            return 0
        if not path.startswith(self.under):
            return 0
        call = Call(len(self.seen) + 1, name, path)
        self.seen.append(call)
        behind = call.number - self.at
        if self.at and (behind == 0 or (self.every and behind > 0 and behind % self.every == 0)):
            self.hits.append(call)
            return self.error
        return 0


def install(numbers: Sequence[int]) -> int:
    """Put a filter on this process, which must have one thread: these calls wait for whoever holds the listener, the
    returned descriptor. Runs in the process that is to be watched.
    """
    steps = [(_LOAD, 0, 0, 0)]  # the number of the call, the first field of seccomp_data
    for position, number in enumerate(numbers):
        steps.append((_JUMP_IF_EQUAL, len(numbers) - position, 0, number))
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _USER_NOTIF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(ctypes.c_int(_PR_SET_NO_NEW_PRIVS), ctypes.c_ulong(1), zero, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    listener: int = libc.syscall(
        ctypes.c_long(_SECCOMP[platform.machine()]),
        ctypes.c_uint(_SET_MODE_FILTER),
        ctypes.c_uint(_NEW_LISTENER),
        program,
    )
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def need_injection() -> None:
    """Skip the test where the kernel does not hand calls over; in CI it fails instead."""
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail", encoding="ascii") as file:
            available = "user_notif" in file.read().split()
    except FileNotFoundError:
        available = False
    if not available or platform.machine() not in _MACHINES:
        if os.environ.get("CI") == "true":
            pytest.fail("no seccomp user notification, and CI must not skip a test", pytrace=False)
        pytest.skip("this kernel has no seccomp user notification, or the machine's calls are not known here")


def _number(name: str) -> int | None:
    return _CALLS[name][0][_MACHINES.index(platform.machine())]


def _path(name: str, thread: int, arguments: Sequence[int]) -> str:
    """What a call is about. Raises OSError where the process is gone or the descriptor is none."""
    _, descriptor, argument = _CALLS[name]
    directory = ""
    if descriptor is not None:
        number = ctypes.c_int(arguments[descriptor] & 0xFFFFFFFF).value
        directory = os.readlink(f"/proc/{thread}/cwd" if number == _AT_FDCWD else f"/proc/{thread}/fd/{number}")
    if argument is None:
        return directory.removesuffix(" (deleted)")
    memory = os.open(f"/proc/{thread}/mem", os.O_RDONLY)
    try:
        text = os.pread(memory, 4096, arguments[argument]).partition(b"\0")[0]
    finally:
        os.close(memory)
    return os.path.join(directory, os.fsdecode(text))
