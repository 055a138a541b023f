"""Pure decisions: no file system, no SQLite, no network, no clock; time and randomness are arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum

from tombsync.names import SEGMENT_SUFFIXES, TOMBSTONE_SUFFIX, Kind, classify

PUT_BACK_AFTER_S = 60.0  # `rm -r` of an hour, or retention, has time to finish before a tombstone is put back
BACKOFF_FIRST_S = 1.0
BACKOFF_LAST_S = 60.0
DEAD_AFTER_S = 600.0  # a peer dead for ten minutes is asked at most once a minute
ASK_AGAIN_S = 60.0  # not-served and refused deliveries


class State(IntEnum):
    """What is known of one delivery. The numbers are stored; those up to LAST_DUE are due again and again."""

    PENDING = 1
    NOT_SERVED = 2  # root, channel or quality is missing there
    REFUSED = 3  # the peer answered and will not: permission, a name that no peer is sent, something else of that name
    RECEIVED = 4  # in the peer's inbox, its agent has not applied it yet
    HELD = 5  # waits for a person
    NOT_DURABLE = 6  # placed, but the peer cannot say that it survives a power cut
    CONFIRMED = 7
    HOUR_GONE = 8  # the peer no longer keeps that hour: an answer like confirmed
    SUPERSEDED = 9  # a later generation of the marker made it meaningless

    @property
    def word(self) -> str:
        """The word that people and metrics see."""
        return self.name.lower().replace("_", "-")


LAST_DUE = State.RECEIVED
DUE_STATES = tuple(state for state in State if state <= LAST_DUE)
# What delays an operator's "everywhere": a peer that does not serve the channel has given its answer.
UNCONFIRMED_STATES = (State.PENDING, State.REFUSED, State.RECEIVED, State.HELD)
# The peer has, or had, the tombstone: from then on its hour is not made again.
THERE_STATES = (State.NOT_DURABLE, State.CONFIRMED, State.HOUR_GONE)
# The answers to a push that was on its way when its delivery was held, after which there is nothing left to hold.
ENDS_HOLD_STATES = (*THERE_STATES, State.RECEIVED)
# While one of these is open, the marker's row outlives its hour directory.
KEEP_STATES = (State.PENDING, State.NOT_SERVED, State.REFUSED, State.RECEIVED, State.HELD)


class Need(Enum):
    """What a stem needs next (see `reconcile`)."""

    NOTHING = "nothing"
    HIDE = "hide"
    WAIT = "wait"
    PUT_BACK = "put-back"
    FORGET = "forget"


def reconcile(
    *, recorded: bool, in_tree: bool, present: bool, hour_present: bool, missing_for_s: float, open_deliveries: bool
) -> Need:
    """Decide what a stem needs, whoever asks.

    `recorded`: the index has its marker; `in_tree`: the marker's file was once in the tree; `present`: the file stands
    now; `missing_for_s`: seconds (monotonic) since file or hour were first seen missing.
    """
    if present:
        return Need.NOTHING if recorded else Need.HIDE
    if not recorded:
        return Need.NOTHING
    if not in_tree:  # received, and not yet in the tree: the inbox's own business
        return Need.WAIT
    if missing_for_s < PUT_BACK_AFTER_S:
        return Need.WAIT
    if hour_present:
        return Need.PUT_BACK
    return Need.WAIT if open_deliveries else Need.FORGET


def look_again_at(missing_since: float, now: float) -> float:
    """When a stem that waits is looked at again: when it may be put back, or as long after a failure to do so."""
    at = missing_since + PUT_BACK_AFTER_S
    return at if at > now else now + PUT_BACK_AFTER_S


@dataclass(frozen=True)
class HourDiff:
    """How the index's rows of an hour differ from a listing of its directory.

    Segments and mistakes are file names, markers are stems.
    """

    add: list[str]
    drop: list[str]
    markers_found: list[str]
    markers_missing: list[str]
    mistakes: list[str]


def visible_names(names: Iterable[str], *, marked: Iterable[str] = (), tombstones: bool = False) -> list[str]:
    """What is listed of a directory of these names, sorted: the archive's own rule, and what else is `marked` (stems).

    `tombstones`: those too. A name that begins with a dot is never listed. `STEM.ts.tombstone` counts for what it is to
    the archive, the tombstone of `STEM.ts.ts`.
    """
    listed = [name for name in names if name[0] != "."]
    hidden = {name[: -len(TOMBSTONE_SUFFIX)] for name in listed if name.endswith(TOMBSTONE_SUFFIX)}
    hidden.update(marked)
    segments = [name for name in listed if name.endswith(SEGMENT_SUFFIXES)]
    if hidden:
        segments = [name for name in segments if name.rpartition(".")[0] not in hidden]
    if tombstones:
        segments += [stem + TOMBSTONE_SUFFIX for stem in hidden]
    segments.sort()
    return segments


def diff_hour(names: Iterable[str], *, segments: set[str], markers: set[str]) -> HourDiff:
    """Compare a listing with the rows that were read *before* it was made; `markers`: those known to be in the tree.

    In that order a file that comes or goes in between is at worst added or dropped twice, which is harmless; the
    hour's changed mtime makes the next visit look again. `add` is sorted, as SQLite inserts sorted keys faster. Whole
    names are compared, not parsed ones: this runs over every file of the tree.
    """
    listed = [name for name in names if name[0] != "."]
    found = {name for name in listed if name.endswith(SEGMENT_SUFFIXES)}
    found_markers: set[str] = set()
    mistakes: list[str] = []
    for name in listed:
        if name.endswith(TOMBSTONE_SUFFIX):
            kind, stem = classify(name)
            if kind is Kind.TOMBSTONE:
                found_markers.add(stem)
            else:
                mistakes.append(name)
    return HourDiff(
        add=sorted(found - segments),
        drop=sorted(segments - found),
        markers_found=sorted(found_markers - markers),
        markers_missing=sorted(markers - found_markers),
        mistakes=sorted(mistakes),
    )


def looks_unmounted(*, was_own_mount: bool, is_own_mount: bool, present: bool) -> bool:
    """Whether a channel or quality that lost its hours was unmounted rather than emptied.

    Such a directory is a mount below ROOT when its device differs from ROOT's; that relation survives a reboot, device
    numbers do not.
    """
    return was_own_mount and not (present and is_own_mount)


class Breaker:
    """Tells a mass of marks from single ones, by the ctimes of their files: more than `most` within a minute.

    Counted in steps of ten seconds. Belongs to whoever counts; what was counted long ago is forgotten.
    """

    STEP_NS = 10_000_000_000
    MOST_STEPS = 10_000  # kept: more than a day in which each had a mark
    _STEPS = 6  # of a minute

    def __init__(self, most: int) -> None:
        self.most = most  # any thread may change it
        self._counts: dict[int, int] = {}

    def count(self, ctime_ns: int) -> None:
        """One more mark was made then."""
        step = ctime_ns // self.STEP_NS
        self._counts[step] = self._counts.get(step, 0) + 1
        if len(self._counts) > self.MOST_STEPS:
            del self._counts[next(iter(self._counts))]

    def recall(self, counts: Mapping[int, int]) -> None:
        """Count what is recorded, and nothing else: step (ctime over STEP_NS) -> marks, at most MOST_STEPS of them."""
        self._counts = dict(counts)

    def window(self, ctime_ns: int) -> tuple[int, int] | None:
        """The first and last ctime of a minute around this one that is full: one more mark in it belongs to a mass.

        None where there is none.
        """
        step = ctime_ns // self.STEP_NS
        for first in range(step - self._STEPS + 1, step + 1):
            if sum(self._counts.get(first + offset, 0) for offset in range(self._STEPS)) >= self.most:
                return first * self.STEP_NS, (first + self._STEPS) * self.STEP_NS - 1
        return None


def backoff_s(failures: int, dead_for_s: float, *, random: float) -> float:
    """Seconds until a peer is tried again after `failures` in a row (1 or more).

    Doubles from 1 s to 60 s, times a jitter of 0.5 to 1; once the peer has been dead for ten minutes never below 60 s,
    so that a long outage costs at most one login a minute. `random` is uniform in [0, 1).
    """
    if dead_for_s >= DEAD_AFTER_S:
        return BACKOFF_LAST_S * (1.0 + 0.25 * random)
    ceiling = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 10))
    return ceiling * (0.5 + 0.5 * random) if failures > 1 else BACKOFF_FIRST_S * (1.0 + 0.5 * random)


def window(rtt_s: float, service_s: float, *, least: int, most: int) -> int:
    """How many requests to keep in flight: what covers the round trip, so that little queues up at the server.

    `service_s` is the server's time for one request. A fresh tombstone waits behind about `least` requests.
    """
    return max(least, min(most, least + int(rtt_s / service_s)))
