"""What the demo measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from tombsync.names import Marked


@dataclass
class Mark:
    """One tombstone. Milliseconds count on the monotonic clock from just before the touch until an index said so.

    `hidden_ms` by node. `confirmed_ms`: until each node had the confirmation of all its neighbours. `down`: the node
    that is stopped meanwhile; then `pending_at` is who keeps the delivery for it, and `caught_up_ms` and
    `confirmed_ms` count from the node's new start.
    """

    number: int
    marked: Marked
    hidden_ms: dict[str, float] = field(default_factory=dict)
    confirmed_ms: float | None = None
    down: str = ""
    pending_at: str = ""
    caught_up_ms: float | None = None

    @property
    def short(self) -> str:
        """Its segment without the hash, which is most of the name."""
        return "-".join(self.marked.stem.split("-")[:3])


@dataclass
class Report:
    """The whole demo. Only the main thread touches it."""

    nodes: tuple[str, ...]
    server: str = ""
    confined: bool = False
    marks: list[Mark] = field(default_factory=list)
    outage: Mark | None = None
    noticed_ms: float | None = None
    listed: dict[str, int] = field(default_factory=dict)
    files_unchanged: int = 0
    took_s: float = 0.0
    failure: str = ""
    directory: str = ""  # "" where it is gone

    def best(self) -> tuple[dict[str, float], float | None]:
        """The least of each column, the outage left out."""
        hidden = {
            node: min(values)
            for node in self.nodes
            if (values := [mark.hidden_ms[node] for mark in self.marks if node in mark.hidden_ms])
        }
        confirmed = [mark.confirmed_ms for mark in self.marks if mark.confirmed_ms is not None]
        return hidden, min(confirmed, default=None)

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        hidden, confirmed = self.best()
        return {
            "held": not self.failure,
            "failure": self.failure or None,
            "server": self.server or None,
            "confined": self.confined,
            "chain": list(self.nodes),
            "marks": [
                {
                    "segment": mark.marked.path,
                    "hidden_ms": _rounded(mark.hidden_ms),
                    "confirmed_ms": _round(mark.confirmed_ms),
                }
                for mark in self.marks
            ],
            "best": {"hidden_ms": _rounded(hidden), "confirmed_ms": _round(confirmed)},
            "outage": self._outage(),
            "listed": self.listed,
            "files_unchanged": self.files_unchanged,
            "took_s": round(self.took_s, 3),
            "directory": self.directory or None,
        }

    def _outage(self) -> dict[str, object] | None:
        mark = self.outage
        if mark is None:
            return None
        return {
            "node": mark.down,
            "segment": mark.marked.path,
            "noticed_ms": _round(self.noticed_ms),
            "hidden_ms": _rounded(mark.hidden_ms),
            "pending_at": mark.pending_at or None,
            "caught_up_ms": _round(mark.caught_up_ms),
            "confirmed_ms": _round(mark.confirmed_ms),
        }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def duration(milliseconds: float | None) -> str:
    """A time as people read it; "" for none yet."""
    if milliseconds is None:
        return ""
    return f"{milliseconds:.1f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"
