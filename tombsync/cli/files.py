"""New files, written beside, synced, and put in place whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tombsync import errors


def write_new(files: dict[str, bytes]) -> None:
    """Put new files in place, in the order given, durably: all of them or none. Only their owner may read them.

    Raises FileRefused, also where one of them is there already.
    """
    placed: list[str] = []
    path = ""
    try:
        with ExitStack() as stack:
            for path, content in files.items():
                aside = stack.enter_context(_written_aside(path, content))
                os.link(aside, path)  # unlike a rename, it replaces nothing
                placed.append(path)
        for path in placed:
            sync_directory(os.path.dirname(path) or ".")
    except OSError as exc:
        for done in placed:
            os.unlink(done)
        raise errors.FileRefused(path, exc.strerror or str(exc)) from exc


def write_over(path: str, content: bytes) -> None:
    """Put a file in place of whatever file of that name there is, whole; readable for everybody, as far as the umask
    allows. Raises FileRefused.
    """
    try:
        with _written_aside(path, content) as aside:
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(aside, 0o666 & ~umask)
            os.link(aside, f"{aside}.new")  # `aside` itself is removed at the end
            try:
                os.replace(f"{aside}.new", path)
            except OSError:
                os.unlink(f"{aside}.new")
                raise
    except OSError as exc:
        raise errors.FileRefused(path, exc.strerror or str(exc)) from exc


@contextmanager
def _written_aside(path: str, content: bytes) -> Iterator[str]:
    """The name of a file beside, which is gone after the block. Raises OSError."""
    descriptor, aside = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path) or ".")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        yield aside
    finally:
        os.unlink(aside)


def sync_directory(path: str) -> None:
    """Make what was renamed, linked or removed in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
