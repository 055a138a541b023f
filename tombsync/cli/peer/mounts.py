"""Mounts that come back at boot: as systemd's mount units where systemd runs, else as lines of /etc/fstab.

Both hand the same options to mount(8), which takes a bind mount with `ro` and `private` in its two or three calls.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tombsync import errors
from tombsync.cli.peer.files import read_text, remove_file, replace_file
from tombsync.cli.peer.steps import Step, run_program

FSTAB = "/etc/fstab"
UNITS = "/etc/systemd/system"
_TARGET = "local-fs.target"
_UNSAFE_PATTERN = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


@dataclass(frozen=True)
class Mount:
    """A mount to be made: `what` at `where`, of a `kind` of file system, with the options of mount(8).

    Raises NotMountable where a path cannot be written down.
    """

    what: str
    where: str
    kind: str
    options: str

    def __post_init__(self) -> None:
        for path in (self.what, self.where):
            if _UNSAFE_PATTERN.search(path):
                raise errors.NotMountable(path)

    @property
    def fstab_line(self) -> str:
        """As fstab(5) has it."""
        fields = (self.what, self.where, self.kind, self.options, "0", "0")
        return " ".join(field.replace(" ", "\\040") for field in fields)

    @property
    def unit(self) -> str:
        """As systemd.mount(5) has it. A bind mount goes with what it is of: systemd sees to that by `What`."""
        # Paths may hold a percent sign, which begins a specifier there.
        what, where = self.what.replace("%", "%%"), self.where.replace("%", "%%")
        return (
            f"[Unit]\nDescription=tombsync: {where}\n\n"
            f"[Mount]\nWhat={what}\nWhere={where}\nType={self.kind}\nOptions={self.options}\n\n"
            f"[Install]\nWantedBy={_TARGET}\n"
        )


@dataclass(frozen=True)
class Mounted:
    """A mount that stands; `options` are those of the mount itself, `kind` the file system."""

    where: str
    options: frozenset[str]
    kind: str


def runs_systemd() -> bool:
    """Whether systemd is the service manager of this machine (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def mounts() -> list[Mounted]:
    """All mounts, in the order in which they were made (proc(5), mountinfo)."""
    found = []
    for line in read_text("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        after = fields.index("-")
        where = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        found.append(Mounted(where, frozenset(fields[5].split(",")), fields[after + 1]))
    return found


def mounted_at(where: str) -> Mounted | None:
    """What is mounted at a place, the topmost."""
    return next((mount for mount in reversed(mounts()) if mount.where == where), None)


def unit_name(where: str) -> str:
    """The name of the mount unit of a place, as `systemd-escape --path --suffix=mount` makes it."""
    escaped = []
    for part in os.fsencode(where.strip("/")).split(b"/"):
        text = "".join(chr(b) if (chr(b).isalnum() and b < 128) or b in b":_." else f"\\x{b:02x}" for b in part)
        escaped.append(text)
    name = "-".join(escaped)
    return (f"\\x2e{name[1:]}" if name.startswith(".") else name) + ".mount"


def steps(mount: Callable[[], Mount], where: str, what: str, stands: Callable[[], bool]) -> Iterator[Step]:
    """Record a mount and make it. `mount` is asked when it is made, and may raise KeyError before its account is there.

    `what`: what it is, for people; `stands`: whether it is there as it should be.
    """
    yield Step(
        f"record {what} at {where} for every boot ({_record_of(where)})",
        lambda: _is_recorded(mount, where),
        lambda: _record(mount(), where),
    )
    yield Step(f"mount {what} at {where}", stands, lambda: _make(mount(), where))


def removal_steps(where: str, what: str) -> Iterator[Step]:
    """Unmount and forget, files in it included."""
    yield Step(f"unmount {what} at {where}", lambda: mounted_at(where) is None, lambda: unmount(where))
    yield Step(
        f"take {what} out of {_record_of(where)}",
        lambda: not os.path.lexists(_unit_path(where)) if runs_systemd() else not _fstab_lines(where),
        lambda: _forget(where),
    )


def unmount(where: str) -> None:
    """Unmount a place and what is mounted below it, at once: whoever still looks at it does not hold it up."""
    while mounted_at(where) is not None:
        run_program("umount", "--recursive", "--lazy", where)


def _record_of(where: str) -> str:
    return _unit_path(where) if runs_systemd() else FSTAB


def _unit_path(where: str) -> str:
    return f"{UNITS}/{unit_name(where)}"


def _make(mount: Mount, where: str) -> None:
    unmount(where)
    if runs_systemd():
        run_program("systemctl", "restart", unit_name(where))
    else:
        run_program("mount", "-t", mount.kind, "-o", mount.options, mount.what, where)


def _is_recorded(mount: Callable[[], Mount], where: str) -> bool:
    try:
        wanted = mount()
    except KeyError:
        return False
    if runs_systemd():
        wanted_by = f"{UNITS}/{_TARGET}.wants/{unit_name(where)}"
        return read_text(_unit_path(where)) == wanted.unit and os.path.lexists(wanted_by)
    return _fstab_lines(where) == [wanted.fstab_line]


def _record(mount: Mount, where: str) -> None:
    if runs_systemd():
        replace_file(_unit_path(where), mount.unit)
        run_program("systemctl", "daemon-reload")
        run_program("systemctl", "enable", unit_name(where))
    else:
        _write_fstab(where, mount.fstab_line)


def _forget(where: str) -> None:
    if runs_systemd():
        run_program("systemctl", "disable", unit_name(where))
        remove_file(_unit_path(where))
        run_program("systemctl", "daemon-reload")
    else:
        _write_fstab(where)


def _fstab_lines(where: str) -> list[str]:
    return [line for line in read_text(FSTAB).splitlines() if _is_of(line, where)]


def _is_of(line: str, where: str) -> bool:
    fields = line.split()
    return len(fields) > 1 and not line.lstrip().startswith("#") and fields[1] == where.replace(" ", "\\040")


def _write_fstab(where: str, *lines: str) -> None:
    text = read_text(FSTAB)
    kept = [line for line in text.splitlines(keepends=True) if not _is_of(line, where)]
    if lines and kept and not kept[-1].endswith("\n"):
        kept[-1] += "\n"
    replace_file(FSTAB, "".join([*kept, *(f"{line}\n" for line in lines)]))
