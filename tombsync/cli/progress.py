"""A progress bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from tombsync.cli.common import on_terminal


class Bar:
    """How far long work is, on stderr. A context manager; the bar is gone when the block ends."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._progress = Progress(
            *columns, console=Console(stderr=True), transient=True, disable=not on_terminal(sys.stderr)
        )
        self._task = self._progress.add_task(what, total=None)

    def show(self, done: int, total: int) -> None:
        """How much is done, of how much."""
        self._progress.update(self._task, completed=done, total=total or None)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
