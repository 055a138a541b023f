"""Whether the whole way to a peer stands, also when nobody marks anything."""

from __future__ import annotations

import time
from collections.abc import Callable

from tombsync.audit import Audit, Event
from tombsync.peers import Session

CANARY_INTERVAL_S = 60.0
CANARY_LOST_AFTER_S = 150.0  # two in a row failed: a broken way is told within three minutes


class Canary:
    """Sends one canary after another, over all sessions with a peer, and tells when they are lost and when they return.

    Belongs to the pusher's thread, but for `age_s`.
    """

    def __init__(self, peer_name: str, audit: Audit, *, on_marker_seen: Callable[[], None] = lambda: None) -> None:
        """`on_marker_seen`: its root marker was seen for the first time, which is to be remembered: see `insist`."""
        self._peer_name = peer_name
        self._on_marker_seen = on_marker_seen
        self._audit = audit
        self._due_at = 0.0
        self._whole_at = time.monotonic()  # when the way was last whole; or, never yet, the beginning
        self._lost = False
        self._marker_seen = False

    @property
    def age_s(self) -> float:
        """Seconds since the whole way was last found to stand; from any thread."""
        return time.monotonic() - self._whole_at

    def insist(self) -> None:
        """The root marker was seen in an earlier life: it has to stand there."""
        self._marker_seen = True

    def look_after(self, session: Session, now: float) -> None:
        """Tell what became of the last one, and send the next when it is time to. Raises PeerError."""
        if session.marker_there and not self._marker_seen:
            self._marker_seen = True
            self._on_marker_seen()
        if session.canary_at is not None and session.canary_at > self._whole_at:
            self._whole_at = session.canary_at
            if self._lost:
                self._lost = False
                text = f"the way to {self._peer_name} is whole again"
                self._audit.record(Event.CANARY_RETURNED, text, peer=self._peer_name)
        elif session.canary_problem and not self._lost and now - self._whole_at > CANARY_LOST_AFTER_S:
            self._lost = True
            text = f"the way to {self._peer_name} is broken: {session.canary_problem}"
            self._audit.record(Event.CANARY_LOST, text, peer=self._peer_name, reason=session.canary_problem)
        if now >= self._due_at:
            self._due_at = now + CANARY_INTERVAL_S
            session.walk_canary(marker_seen=self._marker_seen)
