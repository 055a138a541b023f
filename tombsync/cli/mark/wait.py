"""`--wait`: stay until every peer has confirmed what was marked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import click

from tombsync import errors
from tombsync.cli.common import agent_runs, exit_code, on_terminal, open_reader, say, tell_error, warn
from tombsync.cli.mark.answers import Answers
from tombsync.cli.mark.hiding import Hiding, Result
from tombsync.config import Settings
from tombsync.index import MarkerRow, PeerRow, Reader
from tombsync.names import printable
from tombsync.plan import State

DEFAULT_TIMEOUT_S = 120  # a peer that was down is tried again after 75 s at the latest (plan.backoff_s)
_LOOK_S = 0.2  # another process's commit is nothing that can be waited for; a person sees no difference
_REST = 4  # times as long as a look took, it rests: of very many marks too, the index is left to the agent
HOW_TO_LOOK = "the marks stand and are delivered as soon as can be; `tombsync status --pending` lists what is left"


Show = Callable[[bool], None]  # told whether that is the last time


@dataclass(frozen=True)
class Patience:
    """Whether to wait for the peers, and for how long."""

    wait: bool
    timeout_s: float = DEFAULT_TIMEOUT_S


def await_peers(hiding: Hiding, results: Sequence[Result], patience: Patience, *, tell: bool) -> bool:
    """Wait where that was asked for, and note the state at each peer in the results.

    False where some have not confirmed in time, which is told on stderr. `tell`: how it goes, on stdout. Raises
    click.Abort on Ctrl-C.
    """
    done = [one for one in results if one.outcome in ("marked", "already-marked")]
    marked = {one.marked: one for one in done if one.marked is not None}
    if not patience.wait or hiding.dry_run or not marked:
        return True
    peers = sorted(peer.name for peer in hiding.settings.peers)
    if not peers:
        warn("no peers are configured: nobody else is told")
        return True
    answers = Answers(marked, peers)
    try:
        if not agent_runs(hiding.settings):
            raise errors.AgentNotRunning(hiding.settings.state_dir)
        if hiding.agent is not None:
            _watch(hiding.settings, hiding.agent, answers, patience.timeout_s, tell=tell)
        else:  # it came up after the marks, or is just making its index
            reader = open_reader(hiding.settings)
            try:
                _watch(hiding.settings, reader, answers, patience.timeout_s, tell=tell)
            finally:
                reader.close()
    except errors.TombsyncError as exc:  # what was marked is marked all the same
        tell_error(exc)
        return False
    except KeyboardInterrupt:
        click.echo(f"tombsync: no longer waiting: {HOW_TO_LOOK}", err=True)
        raise click.Abort from None
    finally:
        for one, states in answers.states.items():
            marked[one].peers = {peer: None if state is None else state.word for peer, state in states.items()}
    return True


def _watch(settings: Settings, reader: Reader, answers: Answers, timeout_s: float, *, tell: bool) -> None:
    """Raises NotAllConfirmed."""
    deadline = time.monotonic() + timeout_s
    took_s = _look(settings, reader, answers)
    with _shown(reader, answers, tell=tell) as show:
        while answers.open() and time.monotonic() < deadline:
            show(False)
            time.sleep(min(max(0.0, deadline - time.monotonic()), max(_LOOK_S, _REST * took_s)))
            took_s = _look(settings, reader, answers)
        show(True)
    if lacking := answers.lacking():
        raise errors.NotAllConfirmed(tuple(f"{peer}: {line(answers, peer)}" for peer in lacking), HOW_TO_LOOK)


def _look(settings: Settings, reader: Reader, answers: Answers) -> float:
    """Ask the index about what is open, and how long that took.

    A peer counts only as the settings have it now: what another target confirmed says nothing of this one.
    """
    from tombsync.daemon import target_text  # not above: it brings the SSH library with it

    begun = time.monotonic()
    known = {row.name: row.target for row in reader.peers()}
    same = {peer.name for peer in settings.peers if known.get(peer.name) == target_text(peer)}
    for one in answers.open():
        row = reader.marker(one)
        if row is not None:
            states = _states(reader, row, answers.peers)
            answers.put(one, {peer: state for peer, state in states.items() if peer in same})
    return time.monotonic() - begun


def _states(reader: Reader, row: MarkerRow, peers: Sequence[str]) -> dict[str, State]:
    """What the index says of one mark; all superseded where it was taken back meanwhile."""
    if not row.hides:
        return dict.fromkeys(peers, State.SUPERSEDED)
    return {delivery.peer: delivery.state for delivery in reader.deliveries(row.marker)}


@contextmanager
def _shown(reader: Reader, answers: Answers, *, tell: bool) -> Iterator[Show]:
    """How to show how far it is: a table that changes on a terminal, elsewhere one line for each peer once it has
    answered of all."""
    if not tell:
        yield lambda _last: None
    elif on_terminal(sys.stdout):
        with _table(reader, answers) as show:
            yield show
    else:
        told: set[str] = set()

        def say_done(last: bool) -> None:
            for peer in answers.peers:
                if peer not in told and (last or answers.is_done(peer)):
                    told.add(peer)
                    say(f"{peer}: {line(answers, peer)}")

        yield say_done


@contextmanager
def _table(reader: Reader, answers: Answers) -> Iterator[Show]:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def table() -> Table:
        rows = {row.name: row for row in reader.peers()}
        made = Table(box=None, pad_edge=False, header_style="bold")
        for header in ("PEER", "IS", "CONFIRMED", "OTHER"):
            made.add_column(header, overflow="fold")
        for peer in answers.peers:
            counts = answers.counts(peer)
            confirmed = f"{counts.pop(State.CONFIRMED, 0)} of {len(answers.states)}"
            cells = (peer, _up(rows.get(peer)), confirmed, _words(counts) or "-")
            made.add_row(*(Text(printable(cell)) for cell in cells))
        return made

    with Live(table(), console=Console(highlight=False), auto_refresh=False) as live:
        yield lambda _last: live.update(table(), refresh=True)


def _up(row: PeerRow | None) -> str:
    if row is None:
        return "not taken up by the agent yet"
    return "up" if row.up else f"down: {row.error}" if row.error else "connecting"


def line(answers: Answers, peer: str) -> str:
    """How many are in which state at a peer, in words."""
    return _words(answers.counts(peer))


def _words(counts: Mapping[State | None, int]) -> str:
    words = {state.word if state is not None else "not on its way yet": n for state, n in counts.items()}
    return ", ".join(f"{count} {word}" for word, count in sorted(words.items()))


def exit_code_of(results: Sequence[Result], *, everywhere: bool) -> int:
    """0 where all are marked (and everywhere, where that was waited for), 1 where none is, 3 in part."""
    failed = sum(result.outcome == "failed" for result in results)
    code = exit_code(len(results) - failed, failed)
    return code if code or everywhere else errors.EXIT_IN_PART
