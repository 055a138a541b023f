"""What people see of the demo: a live table on a terminal, plain lines elsewhere, nothing with `--json`."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tombsync.cli.common import say
from tombsync.cli.demo.report import Mark, Report, duration

INTRODUCTION = (
    "Three nodes on this machine, a - b - c: each a tree, an agent, an SFTP server.",
    "A tombstone is touched on node-a: see how fast every node hides the segment.",
)

_CELL_WIDTH = len("back 1.7 s")  # so that the table does not jump when it fills up


class Screen(Protocol):
    """Shows how far the demo is. Everything is called by the main thread; a context manager."""

    pause_s: float  # how long people want to look at a mark before the next one

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def working(self, text: str) -> None:
        """What is going on now; "" for nothing."""

    def step(self, label: str, text: str) -> None:
        """Something was done, and held."""

    def measured(self, mark: Mark) -> None:
        """A mark of the report has come so far."""

    def best(self) -> None:
        """All marks are measured."""

    def tick(self) -> None:
        """Time passes while something is waited for."""

    def end(self, text: str) -> None:
        """The last line, after the clean-up."""


class Silent:
    """For `--json`: the document says it all at the end."""

    pause_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def working(self, text: str) -> None:
        pass

    def step(self, label: str, text: str) -> None:
        pass

    def measured(self, mark: Mark) -> None:
        pass

    def best(self) -> None:
        pass

    def tick(self) -> None:
        pass

    def end(self, text: str) -> None:
        pass


class Lines(Silent):
    """For a file, a pipe, a log: each line once, when it is known."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __enter__(self) -> Self:
        for line in INTRODUCTION:
            say(line)
        say()
        return self

    def step(self, label: str, text: str) -> None:
        say(f"{label:<10} {text}")

    def measured(self, mark: Mark) -> None:
        self.step(f"mark {mark.number}", f"{mark.short}: {_sentence(mark.hidden_ms, mark.confirmed_ms)}")

    def best(self) -> None:
        self.step("best", _sentence(*self._report.best()))

    def end(self, text: str) -> None:
        say(text)


def _sentence(hidden_ms: dict[str, float], confirmed_ms: float | None) -> str:
    hidden = ", ".join(f"on {node} after {duration(after)}" for node, after in hidden_ms.items())
    confirmed = f"; confirmed by peers after {duration(confirmed_ms)}" if confirmed_ms is not None else ""
    return f"hidden {hidden}{confirmed}"


class Terminal(Silent):
    """For a terminal: one picture that fills up. It is drawn between measurements, never beside one."""

    pause_s = 0.4

    def __init__(self, report: Report) -> None:
        self._report = report
        self._console = Console(highlight=False)
        self._before: list[RenderableType] = []
        self._after: list[RenderableType] = []
        self._spinner: Spinner | None = None
        self._best = False
        self._stack = ExitStack()
        self._live = Live(self._picture(), console=self._console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._stack.enter_context(self._live)
        return self

    def __exit__(self, *exc: object) -> None:
        self._spinner = None
        with self._stack:
            self.tick()

    def working(self, text: str) -> None:
        self._spinner = Spinner("line", Text(text)) if text else None
        self.tick()

    def step(self, label: str, text: str) -> None:
        lines = self._after if self._marks() else self._before
        lines.append(Text.assemble(("ok", "green"), f"  {label:<10} {text}"))
        self.tick()

    def measured(self, mark: Mark) -> None:
        self.tick()

    def best(self) -> None:
        self._best = True
        self.tick()

    def tick(self) -> None:
        self._live.update(self._picture(), refresh=True)

    def end(self, text: str) -> None:
        self._console.print(Text("\n" + text, style="bold"))

    def _marks(self) -> list[Mark]:
        return [*self._report.marks, *([self._report.outage] if self._report.outage else [])]

    def _picture(self) -> RenderableType:
        parts: list[RenderableType] = [*(Text(line) for line in INTRODUCTION), Text(), *self._before]
        if self._marks():
            parts += [Text(), self._table(), Text()]
        parts += self._after
        parts += [self._spinner] if self._spinner is not None else []
        return Group(*parts)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("")
        table.add_column("hidden on", no_wrap=True)
        for node in self._report.nodes:
            table.add_column(node, justify="right", no_wrap=True, min_width=_CELL_WIDTH)
        table.add_column("confirmed", justify="right", no_wrap=True, min_width=_CELL_WIDTH)
        for mark in self._report.marks:
            self._add(table, str(mark.number), mark.short, mark.hidden_ms, duration(mark.confirmed_ms))
        if self._best:
            hidden, confirmed = self._report.best()
            self._add(table, "", "best", hidden, duration(confirmed), style="bold green")
        if self._report.outage is not None:
            mark = self._report.outage
            confirmed_text = "pending" if mark.confirmed_ms is None and mark.pending_at else duration(mark.confirmed_ms)
            self._add(table, str(mark.number), mark.short, mark.hidden_ms, confirmed_text, down=mark)
        return table

    def _add(
        self,
        table: Table,
        number: str,
        what: str,
        hidden_ms: dict[str, float],
        confirmed: str,
        *,
        style: str = "",
        down: Mark | None = None,
    ) -> None:
        cells = []
        for node in self._report.nodes:
            if down is not None and node == down.down:
                cells.append("stopped" if down.caught_up_ms is None else f"back {duration(down.caught_up_ms)}")
            else:
                cells.append(duration(hidden_ms.get(node)))
        table.add_row(number, what, *cells, confirmed, style=style)


def is_terminal() -> bool:
    """Whether stdout can show a picture that changes."""
    kind = os.environ.get("TERM", "")
    return sys.stdout is not None and sys.stdout.isatty() and kind not in ("", "dumb", "unknown")
