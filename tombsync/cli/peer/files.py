"""Files of the system that are changed whole: written beside, synced, and renamed into place."""

from __future__ import annotations

import contextlib
import os
import tempfile

from tombsync.cli.files import sync_directory


def read_text(path: str) -> str:
    """The text of a file, bytes that are not UTF-8 kept; "" where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):  # the latter of a process whose file in /proc this was
        return ""


def replace_file(path: str, text: str, *, mode: int = 0o644) -> None:
    """Put a text in place of a file in one step, durably. Owner and mode stay; a new one is root's, with `mode`.

    Through a symlink the file behind it is replaced.
    """
    path = os.path.realpath(path)
    directory = os.path.dirname(path)
    descriptor, beside = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            try:
                was = os.stat(path)
            except FileNotFoundError:
                os.fchmod(file.fileno(), mode)
            else:
                os.fchown(file.fileno(), was.st_uid, was.st_gid)
                os.fchmod(file.fileno(), was.st_mode & 0o7777)
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    sync_directory(directory)


def remove_file(path: str) -> None:
    """Remove a file durably; none is no error."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(os.path.dirname(path))
