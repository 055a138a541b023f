"""Landlock: the agent gives up the ability to touch a segment, before its first thread starts.

Only the rights that modify are handled, so reading, listing, the network and late imports stay as they were. Below
ROOT the kernel then lets this process and every child create new files and directories, and nothing else: a tombstone
is created with O_CREAT|O_EXCL|O_RDONLY, which needs no write right. Left to the service's system call filter, because
Landlock knows nothing of them: chmod, chown, utimes, setxattr, and a hard link within one directory.

The rules are bound to inodes and outlive exec: a tree that is mounted later is under no rule, so nothing can be created
in it until a new process starts. The interface is that of the kernel's Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tombsync.errors import ConfinementUnavailable, StateRefused

# The same numbers on x86_64, aarch64 and every other architecture that got them after 2019.
_SYS_CREATE_RULESET = 444
_SYS_ADD_RULE = 445
_SYS_RESTRICT_SELF = 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

# LANDLOCK_ACCESS_FS_* of linux/landlock.h, those that modify.
_WRITE_FILE = 1 << 1
_REMOVE_DIR = 1 << 4
_REMOVE_FILE = 1 << 5
_MAKE_CHAR = 1 << 6
_MAKE_DIR = 1 << 7
_MAKE_REG = 1 << 8
_MAKE_SOCK = 1 << 9
_MAKE_FIFO = 1 << 10
_MAKE_BLOCK = 1 << 11
_MAKE_SYM = 1 << 12
_REFER = 1 << 13  # ABI 2; below, linking and renaming to another directory is always refused
_TRUNCATE = 1 << 14  # ABI 3; below, truncate(2) is not covered

_MODIFYING = (
    _WRITE_FILE
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_CHAR
    | _MAKE_DIR
    | _MAKE_REG
    | _MAKE_SOCK
    | _MAKE_FIFO
    | _MAKE_BLOCK
    | _MAKE_SYM
)

_RULESET_ATTR = struct.Struct("=Q")  # landlock_ruleset_attr of ABI 1: handled_access_fs
_PATH_BENEATH_ATTR = struct.Struct("=Qi")  # landlock_path_beneath_attr, packed: allowed_access, parent_fd

_OWN_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)  # not mounted yet, or not for this account
_FAULT_HINT = "see the kernel's log for faults of the disk; the agent can be started again when it answers"
_SHORTAGE_HINT = "the limit of open files (LimitNOFILE) or the memory of the machine is used up"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True)
class Confinement:
    """What this process can no longer do. `abi` is the kernel's Landlock ABI, 1 or more.

    `not_covered` names what a complete confinement (ABI 3) refuses and this kernel does not; `without_rule` the
    directories that could not be opened, so that nothing at all is allowed in them until a new process starts.
    """

    abi: int
    not_covered: tuple[str, ...]
    without_rule: tuple[str, ...]

    @property
    def partial(self) -> bool:
        """Whether this kernel leaves something open that a newer one refuses."""
        return bool(self.not_covered)


def abi_version() -> int:
    """The kernel's Landlock ABI; 0 where there is none (an old kernel, not enabled at boot, or filtered away)."""
    flag = ctypes.c_uint(_CREATE_RULESET_VERSION)
    return max(int(_libc.syscall(ctypes.c_long(_SYS_CREATE_RULESET), None, ctypes.c_size_t(0), flag)), 0)


def handled(abi: int) -> tuple[int, tuple[str, ...]]:
    """The rights that a kernel of this ABI can be asked to handle, and the words for those it cannot but should."""
    rights = _MODIFYING
    if abi >= 2:
        rights |= _REFER
    if abi >= 3:
        return rights | _TRUNCATE, ()
    return rights, ("truncate",)


def confine(
    *, root: str, state_dir: str, inbox_dirs: Sequence[str] = (), runtime_dir: str | None = None
) -> Confinement:
    """Restrict the calling thread, and with it all that it starts later, for the rest of the process's life.

    Call it before the first other thread: a thread that already runs would keep every right, so that is refused as the
    programming error it is (RuntimeError). The state directory must be there; where the root, an inbox or the runtime
    directory is not (not mounted yet), it gets no rule and `Confinement.without_rule` says so.

    Raises ConfinementUnavailable where the kernel cannot do it or where the tree lies inside a directory in which
    removing is allowed, and StateRefused where the state directory cannot be opened, or any of the others is there and
    cannot: a disk's fault, no descriptor or memory left. Nothing is restricted then, but new privileges may already be
    given up.
    """
    _require_single_thread()
    abi = abi_version()
    if abi == 0:
        raise ConfinementUnavailable("this kernel has no Landlock, or it is not enabled")
    _require_apart(root, [state_dir, *inbox_dirs, *([runtime_dir] if runtime_dir else [])])
    rights, not_covered = handled(abi)
    optional = [(root, _MAKE_REG | _MAKE_DIR)]
    optional += [(inbox, _REMOVE_FILE) for inbox in inbox_dirs]
    if runtime_dir:
        optional.append((runtime_dir, _MAKE_SOCK | _REMOVE_FILE))
    without_rule = []

    attr = _RULESET_ATTR.pack(rights)
    ruleset = _call(_SYS_CREATE_RULESET, attr, ctypes.c_size_t(len(attr)), ctypes.c_uint(0))
    try:
        try:
            _allow(ruleset, state_dir, rights)
        except OSError as error:
            raise StateRefused(state_dir, error.strerror or str(error)) from error
        for path, allowed in optional:
            try:
                _allow(ruleset, path, allowed)
            except OSError as error:
                if error.errno not in _ABSENT:  # it is there, and without its rule nothing would ever work in it
                    hint = _SHORTAGE_HINT if error.errno in _OWN_SHORTAGES else _FAULT_HINT
                    raise StateRefused(path, error.strerror or str(error), hint) from error
                without_rule.append(path)
        try:
            _allow(ruleset, "/dev/null", _WRITE_FILE, os.O_PATH)
        except OSError:
            without_rule.append("/dev/null")  # a bare chroot; only child processes would miss it
        _give_up_new_privileges()
        _call(_SYS_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)
    return Confinement(abi, not_covered, tuple(without_rule))


def _require_single_thread() -> None:
    try:
        threads = len(os.listdir("/proc/self/task"))
    except OSError as error:
        raise ConfinementUnavailable("/proc is not there to tell whether threads run already") from error
    if threads > 1:
        raise RuntimeError(f"confine() must come before the first thread: {threads} run already")


def _require_apart(root: str, granted: Sequence[str]) -> None:
    """Rights add up on the way from a file to `/`, so a tree inside a directory that allows more is not protected."""
    tree = os.path.realpath(root)
    for path in granted:
        above = os.path.realpath(path)
        if os.path.commonpath([tree, above]) == above:
            raise ConfinementUnavailable(
                f"the segment tree {root} lies inside {path}, where files may be removed",
                hint="move the state, inbox and runtime directories out of the way: none of them may hold the tree",
            )


def _allow(ruleset: int, path: str, allowed: int, flags: int = os.O_PATH | os.O_DIRECTORY) -> None:
    """Allow `allowed` on a path and all below it. Raises OSError where the path cannot be opened."""
    parent = os.open(path, flags | os.O_CLOEXEC)
    try:
        attr = _PATH_BENEATH_ATTR.pack(allowed, parent)
        _call(_SYS_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_RULE_PATH_BENEATH), attr, ctypes.c_uint(0))
    finally:
        os.close(parent)


def _give_up_new_privileges() -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(ctypes.c_int(_PR_SET_NO_NEW_PRIVS), ctypes.c_ulong(1), zero, zero, zero) != 0:
        raise ConfinementUnavailable(f"no_new_privs: {os.strerror(ctypes.get_errno())}")


def _call(number: int, *arguments: object) -> int:
    """One Landlock system call. Raises ConfinementUnavailable with the kernel's reason."""
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise ConfinementUnavailable(f"Landlock refused: {os.strerror(ctypes.get_errno())}")
    return result
